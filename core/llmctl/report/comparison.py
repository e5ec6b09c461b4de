"""The page that compares several runs: results, curves, and differences in configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from llmctl.report import markup
from llmctl.report.chart import Series, figure
from llmctl.report.folder import RunFolder
from llmctl.report.page import PANELS, state
from llmctl.report.style import TONES
from llmctl.report.wording import clock, count, label, metric, setting, size


def comparison(runs: Sequence[RunFolder]) -> str:
    """The page as HTML; each run has a color, in the given order."""
    names = labels(runs)
    title = "Comparison of " + ", ".join(names) if len(runs) < 4 else f"Comparison of {len(runs)} runs"
    return markup.document(
        title,
        [
            f"<h1>{escape(title)}</h1>",
            markup.section("Results", _results(runs, names)),
            markup.section("Curves", _charts(runs, names)),
            markup.section("Differences in configuration", _differences(runs, names)),
        ],
    )


def labels(runs: Sequence[RunFolder]) -> list[str]:
    """A name for each run: the shortest unique suffix of its path."""
    parts = [run.path.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = [os.path.join(*part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{run.path} ({number})" for number, run in enumerate(runs, 1)]


def _results(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    reached = [run.info.get("after", {}).get("metrics") or run.last_evaluation() for run in runs]
    rows = [["state", *map(state, runs)], ["steps", *(f"{run.last_step:,}" for run in runs)]]
    rows.append(["training time", *(clock(sum(value for _, value in run.points("seconds"))) for run in runs)])
    rows.append(["tokens seen", *(f"{run.tokens():,}" if run.tokens() else "-" for run in runs)])
    for key in dict.fromkeys(name for found in reached for name in found):
        rows.append([label(key), *(metric(key, found.get(key)) for found in reached)])
    rows.append(["last training loss", *(_last(run, "loss", lambda v: f"{v:.4g}") for run in runs)])
    rows.append(["tokens per second", *(_middle(run) for run in runs)])
    rows.append(["peak memory", *(_last(run, "peak_memory", size) for run in runs)])
    if any(run.points("peak_gpu_memory") for run in runs):
        rows.append(["peak GPU memory", *(_last(run, "peak_gpu_memory", size) for run in runs)])
    return markup.table(["", *names], rows, numbers=True)


def _charts(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    tones = [number % len(TONES) for number in range(len(runs))]
    every = list(zip(runs, names, tones, strict=True))
    loss = [Series(name, run.points("loss"), tone) for run, name, tone in every]
    charts = [figure("training loss", loss, count, wide=True)]
    for key in dict.fromkeys(name for run in runs for name in run.evaluated()):
        series = [Series(name, run.evaluations(key), tone, dashed=key == "eval_loss") for run, name, tone in every]
        charts.append(figure(label(key), series, lambda value, k=key: metric(k, value)))  # type: ignore[misc]
    for title, keys, show in PANELS:
        lines = [Series(name, run.points(keys[-1]) or run.points(keys[0]), tone) for run, name, tone in every]
        charts.append(figure(title, lines, show, zero=True))
    return '<div class="charts">\n' + "\n".join(filter(None, charts)) + "\n</div>"


def _differences(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    found = [_facts(run.info) for run in runs]
    keys = dict.fromkeys(key for one in found for key in one if not key.startswith("output."))
    rows = [
        [key, *(setting(one[key]) if key in one else "-" for one in found)]
        for key in keys
        if any(one.get(key) != found[0].get(key) for one in found)
    ]
    return markup.table(["key", *names], rows) or "<p>None.</p>"


def _facts(info: Mapping[str, Any]) -> dict[str, Any]:
    versions = {f"version of {name}": value for name, value in info.get("versions", {}).items()}
    return {"family": info.get("family", "-"), **markup.flat(info.get("config", {})), **versions}


def _last(run: RunFolder, key: str, show: Any) -> str:
    points = run.points(key)
    return show(points[-1][1]) if points else "-"


def _middle(run: RunFolder) -> str:
    values = sorted(value for _, value in run.points("tokens_per_second"))
    return count(values[len(values) // 2]) if values else "-"
