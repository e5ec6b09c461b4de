"""The page of a quantized model: how far it is from the float one, errors by layer, what was chosen for each linear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from llmctl.report import markup
from llmctl.report.chart import Series, figure
from llmctl.report.wording import count, setting

STAGES = ("qkv", "q", "kv", "out", "up", "down")
"""``q`` and ``kv`` are the parts of ``qkv`` that have several numbers of bits."""


def page(report: Mapping[str, Any]) -> str:
    """The page as HTML.

    Args:
        report: Content of ``quantization.json``.
    """
    title = f"{report['model']}, quantized: {report['configuration']['quantize']['method']}"
    configuration = [[key, setting(value)] for key, value in markup.flat(report["configuration"]).items()]
    return markup.document(
        title,
        [
            f"<h1>{escape(title)}</h1>",
            f'<p class="soft">{escape(report["summary"])}</p>',
            f"<p>{report['bits']:.2f} bits a weight of the layers, with scales.</p>",
            markup.section("Beside the float model", _quality(report["quality"])),
            markup.section("By layer", _charts(report)),
            markup.section("Scales of inputs", _stages(report["stages"])),
            markup.section("Linears", _linears(report["linears"])),
            markup.section("Configuration", markup.fold("every key", markup.table(["key", "value"], configuration))),
        ],
    )


def _quality(quality: Mapping[str, Any] | None) -> str:
    if quality is None:
        return "<p>Not compared: no text was given.</p>"
    more = quality["quantized_perplexity"] / quality["perplexity"] - 1
    rows = [
        ["tokens that were held out", f"{quality['tokens']:,}"],
        ["perplexity of the float model", f"{quality['perplexity']:.4f}"],
        ["perplexity of the quantized model", f"{quality['quantized_perplexity']:.4f} ({100 * more:+.2f} %)"],
        ["mean KL divergence, in nats", f"{quality['kl']:.3g}"],
        ["likeliest token the same", f"{100 * quality['same_top']:.1f} %"],
    ]
    return markup.table(["", ""], rows, numbers=True)


def _charts(report: Mapping[str, Any]) -> str:
    linears, stages = report["linears"], report["stages"]
    charts = []
    for stage in STAGES:
        rows = [row for row in linears if row["stage"] == stage and row["error"] is not None]
        lines = [
            Series("rounded to nearest", _by_layer(rows, lambda row: row["rounded_error"]), 1, True),
            Series("as kept", _by_layer(rows, lambda row: row["error"]), 0),
        ]
        charts.append(figure(f"squared error of the outputs of {stage}", lines, count, zero=True, axis="layer"))
    for stage in STAGES:
        rows = [row for row in stages if row["stage"] == stage and not (row["reason"] and row["before"] is None)]
        lines = [
            Series("before", _by_layer(rows, lambda row: row["spread"][0]), 1, True),
            Series("after", _by_layer(rows, lambda row: row["spread"][1]), 0),
        ]
        charts.append(figure(f"largest input of {stage} over the median", lines, count, zero=True, axis="layer"))
    drawn = "\n".join(filter(None, charts))
    return f'<div class="charts">\n{drawn}\n</div>' if drawn else ""


def _by_layer(rows: Sequence[Mapping[str, Any]], value: Any) -> list[tuple[float, float]]:
    """(layer, mean of its experts)."""
    layers: dict[int, list[float]] = {}
    for row in rows:
        if value(row) is not None:
            layers.setdefault(row["layer"], []).append(value(row))
    return [(float(layer), sum(values) / len(values)) for layer, values in sorted(layers.items())]


def _stages(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        [_place(row), row["scales"] or "none", _share(row["before"]), _share(row["after"]), row["reason"]]
        for row in rows
    ]
    return markup.fold(
        f"every stage ({len(cells)})", markup.table(["stage", "chosen", "error before", "after", "reason"], cells)
    ) if cells else ""  # fmt: skip


def _linears(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        [
            _place(row), f"int{row['bits']}", row["how"], f"{row['tokens']:,}", _share(row["damping"]),
            _share(row["rounded_error"]), _share(row["error"]),
        ]
        for row in rows
    ]  # fmt: skip
    columns = ["linear", "codes", "how", "tokens", "damping", "error, rounded", "error"]
    return markup.fold(f"every linear ({len(cells)})", markup.table(columns, cells))


def _place(row: Mapping[str, Any]) -> str:
    expert = f", expert {row['expert']}" if row["expert"] else ""
    return f"{row['layer']}: {row['stage']}{expert}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
