"""The page of one run: outcome, metrics, curves, sample answers, configuration, versions, next commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import PurePath
from typing import Any

from llmctl.report import markup
from llmctl.report.chart import Series, figure
from llmctl.report.folder import RunFolder
from llmctl.report.next_commands import report_line, resume_line, try_line
from llmctl.report.wording import clock, count, label, metric, moment, setting, size

PANELS = (
    ("learning rate", ("lr",), count),
    ("gradient norm before clipping", ("grad_norm",), count),
    ("tokens per second", ("tokens_per_second",), count),
    ("peak memory", ("peak_memory", "peak_gpu_memory"), size),
)
"""Charts below the loss: (title, keys of ``metrics.jsonl``, format of values)."""


def page(run: RunFolder) -> str:
    """The page as HTML; sections without data are left out."""
    title = heading(run)
    return markup.document(
        title,
        [
            f"<h1>{escape(title)}</h1>",
            f'<p class="soft">{escape(_facts(run))}</p>',
            _outcome(run),
            markup.section("Held-out examples", _metrics(run)),
            markup.section("Training", _training(run)),
            markup.section("Learning curve", _charts(run)),
            markup.section("Answers before and after", _samples(run)),
            markup.section("Configuration", _configuration(run.info)),
            markup.section("Command and versions", _origin(run.info)),
            markup.section("Next steps", markup.commands(_next(run))),
        ],
    )


def heading(run: RunFolder) -> str:
    """Name of the folder, family, command and method of a run, as far as they are known."""
    info, config = run.info, run.info.get("config", {})
    method = config.get("method", {}).get("name", "")
    what = " ".join(filter(None, [info.get("family", ""), info.get("task", ""), f"({method})" if method else ""]))
    return f"{run.path.resolve().name}: {what}" if what else run.path.resolve().name


def state(run: RunFolder) -> str:
    """``finished``, ``interrupted``, ``failed`` or ``running``."""
    recorded = run.info.get("outcome", {}).get("state")
    if recorded in ("finished", "interrupted", "failed", "running"):
        return str(recorded)
    return "finished" if "after" in run.info else "running"


def _facts(run: RunFolder) -> str:
    info = run.info
    path = info.get("config", {}).get("model", {}).get("path")
    peaks = info.get("peak_memory", {})
    memory = ", ".join(f"peak {label(key).removeprefix('peak ')} {size(value)}" for key, value in peaks.items())
    note = info.get("precision", {}).get("note", "")
    created = f"started {moment(str(info['created']))}" if "created" in info else ""
    return " · ".join(filter(None, [_parameters(info), f"from {path}" if path else "", memory, note, created]))


def _parameters(info: Mapping[str, Any]) -> str:
    """How many parameters the model has, and how many of them were trained."""
    every, trained = info.get("parameters"), info.get("trained_parameters")
    if not isinstance(every, int):
        return ""
    if not isinstance(trained, int) or not every:
        return f"{every:,} parameters, all trained"
    return f"{every:,} parameters, {trained:,} trained ({100 * trained / every:.2g} %)"


def _outcome(run: RunFolder) -> str:
    ended, outcome = state(run), run.info.get("outcome", {})
    planned = outcome.get("steps_planned")
    step = run.last_step
    of = f" of {planned:,}" if isinstance(planned, int) and planned != step else ""
    seconds = sum(value for _, value in run.points("seconds"))
    spent = f", {clock(seconds)} of training" if ended == "finished" and seconds else ""
    text = {
        "finished": f"Finished after {step:,} steps{of}{spent}.",
        "interrupted": f"Interrupted after step {step:,}{of}.",
        "failed": f"Failed after step {step:,}{of}.",
        "running": f"Not finished when this page was written, at step {step:,}{of}: it is still running, or was killed.",
    }[ended]
    lines = [f'<p class="lead {ended}"><strong>{escape(text)}</strong></p>']
    message = outcome.get("message")
    if message and ended in ("failed", "interrupted"):
        lines.append(f'<div class="notice {ended}"><p>{escape(str(message))}</p></div>')
    best = run.info.get("best")
    if isinstance(best, Mapping) and {"metric", "value", "step"} <= set(best):
        name = str(best["metric"])
        lines.append(
            f"<p>Best checkpoint: step {escape(str(best['step']))}, {escape(label(name))} "
            f"{escape(metric(name, best['value']))}.</p>"
        )
    return "\n".join(lines)


def _metrics(run: RunFolder) -> str:
    before = run.info.get("before", {}).get("metrics", {})
    ended = run.info.get("after", {}).get("metrics")
    after, column = (ended, "after") if ended else (run.last_evaluation(), "last evaluation")
    names = list(dict.fromkeys([*before, *after]))
    rows = [[label(name), metric(name, before.get(name)), metric(name, after.get(name))] for name in names]
    tested = run.info.get("test", {})
    rows += [[f"test {label(name.removeprefix('eval_'))}", "-", metric(name, value)] for name, value in tested.items()]
    return markup.table(["", "before", column], rows, numbers=True)


def _training(run: RunFolder) -> str:
    """What was trained on, how fast, and the loss of the first and of the last logged step."""
    losses, speeds = run.points("loss"), sorted(value for _, value in run.points("tokens_per_second"))
    rows = []
    if losses:
        (first, begin), (last, end) = losses[0], losses[-1]
        rows.append(["training loss", f"{begin:.4g} at step {first:,.0f}, {end:.4g} at step {last:,.0f}"])
    if run.tokens():
        rows.append(["tokens seen", f"{run.tokens():,}"])
    if speeds:
        rows.append(
            ["tokens per second", f"{count(speeds[len(speeds) // 2])} in the middle, {count(speeds[-1])} at best"]
        )
    epochs = run.points("epoch")
    if epochs and run.info.get("task") != "pretrain":
        rows.append(["epochs", f"{epochs[-1][1]:.3g}"])
    return markup.table(["", ""], rows)


def _charts(run: RunFolder) -> str:
    loss = [
        Series("training loss", run.points("loss"), 0),
        Series("evaluation loss", run.evaluations("eval_loss"), 1, True),
    ]
    charts = [figure("loss", loss, count, wide=True)]
    for name in run.evaluated():
        if name != "eval_loss":
            charts.append(
                figure(label(name), [Series(label(name), run.evaluations(name), 1)], lambda v, n=name: metric(n, v))  # type: ignore[misc]
            )
    for index, (title, keys, show) in enumerate(PANELS):
        series = [Series(label(key), run.points(key), 2 + index + place) for place, key in enumerate(keys)]
        charts.append(figure(title, series, show, zero=True))
    drawn = "\n".join(filter(None, charts))
    return f'<div class="charts">\n{drawn}\n</div>' if drawn else ""


def _samples(run: RunFolder) -> str:
    before = {sample.get("prompt"): sample for sample in run.info.get("before", {}).get("samples", [])}
    after = {sample.get("prompt"): sample for sample in run.info.get("after", {}).get("samples", [])}
    return "\n".join(_sample(before.get(prompt, {}), after.get(prompt, {})) for prompt in {**before, **after})


def _sample(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    known = {**before, **after}
    rows = [
        ("prompt", known.get("prompt")),
        ("expected", known.get("expected")),
        ("before", before.get("answer")),
        ("after", after.get("answer")),
    ]
    text = "".join(
        f"<dt>{name}</dt><dd>{escape(str(value)) or '<span class=soft>(empty)</span>'}</dd>"
        for name, value in rows
        if value is not None
    )
    return f'<dl class="sample">{text}</dl>'


def _configuration(info: Mapping[str, Any]) -> str:
    values = markup.flat(info.get("config", {}))
    chosen = info.get("chosen")
    lines = [[key, setting(value)] for key, value in values.items()]
    if not isinstance(chosen, Sequence):
        return markup.fold("every key", markup.table(["key", "value"], lines))
    own = [line for line in lines if line[0] in chosen]
    return markup.fold(
        f"what differs from the defaults ({len(own)})", markup.table(["key", "value"], own)
    ) + markup.fold(f"every key ({len(lines)})", markup.table(["key", "value"], lines))


def _origin(info: Mapping[str, Any]) -> str:
    versions = [[str(name), str(version)] for name, version in info.get("versions", {}).items()]
    card = [["card", str(info["card_hash"])]] if "card_hash" in info else []
    command = info.get("command")
    line = markup.commands([shlex.join(_program(command))]) if isinstance(command, Sequence) else ""
    return line + markup.fold("versions", markup.table(["", ""], versions + card))


def _program(command: Sequence[Any]) -> list[str]:
    """A command line as it is typed, where it was recorded with the path of the program."""
    words = [str(word) for word in command]
    ours = bool(words) and PurePath(words[0]).name in ("llmctl", "__main__.py")
    return ["llmctl", *words[1:]] if ours else words


def _next(run: RunFolder) -> list[str]:
    folder = run.path.resolve()  # Whoever opens the page may be anywhere.
    lines = [try_line(folder, run.info)] if run.info.get("next") else []
    if state(run) != "finished" and run.info.get("task"):
        lines.append(resume_line(folder, run.info))
    return [*lines, report_line(folder)]
