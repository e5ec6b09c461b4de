"""What a run prints at its end: metrics and answers before and after, and where its files are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmctl.report.wording import format_metric
from llmctl.train.console import Console

LONGEST = 160
"""Characters of a text; of a longer prompt the end is shown, which has the question, of an answer the beginning."""


def show(output: Path, held_out: str, info: dict[str, Any], console: Console) -> None:
    """Prints the summary of a run.

    Args:
        output: The output folder.
        held_out: What the metrics are measured on.
        info: The content of ``run.json``.
        console: Where to print.
    """
    before, after = info["before"], info["after"]
    earlier = before["metrics"]
    if after["metrics"]:
        rows = [
            [
                name.replace("_", " "),
                *([format_metric(name, earlier.get(name))] if earlier else []),
                format_metric(name, value),
            ]
            for name, value in after["metrics"].items()
        ]
        console.table(held_out, ["metric", *(["before"] if earlier else []), "after"], rows)
    old = [[sample["answer"]] for sample in before["samples"]] or [[] for _ in after["samples"]]
    for number, (sample, first) in enumerate(zip(after["samples"], old, strict=False), 1):
        names = ("prompt", "expected", *("before" for _ in first), "after")
        texts = (_end(sample["prompt"]), *(_beginning(text) for text in (sample["expected"], *first, sample["answer"])))
        console.print(f"held-out example {number}")
        for name, text in zip(names, texts, strict=True):
            console.print(f"  {name:<10}{' '.join(text.split())}")
    console.print(f"model in {output / 'model'}")
    console.print(f"report in {output / 'report.html'}, learning curve in {output / 'curve.svg'}")
    console.print(f"try it: {info['next'][0]}")


def _beginning(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def _end(text: str) -> str:
    return text if len(text) <= LONGEST else "..." + text[-LONGEST:]
