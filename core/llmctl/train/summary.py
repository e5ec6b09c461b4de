"""What a run prints when it is done: metrics and answers before and after, and where everything is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmctl.train.callbacks.progress import format_metric, table


def _end(text: str, longest: int = 160) -> str:
    """The end of a text, where the question of a long prompt stands."""
    return text if len(text) <= longest else "..." + text[-longest:]


def show(output: Path, held_out: str, info: dict[str, Any]) -> None:
    """Prints the end of a run.

    Args:
        output: Its folder.
        held_out: What it was measured on.
        info: The content of its ``run.json``.
    """
    before, after = info["before"], info["after"]
    if after["metrics"]:
        rows = [
            [name.replace("_", " "), format_metric(name, before["metrics"].get(name)), format_metric(name, value)]
            for name, value in after["metrics"].items()
        ]
        table(held_out, ["metric", "before", "after"], rows)
    if after["samples"]:
        earlier = [sample["answer"] for sample in before["samples"]] or ["" for _ in after["samples"]]
        rows = [
            [_end(sample["prompt"]), _end(sample["expected"]), _end(old), _end(sample["answer"])]
            for sample, old in zip(after["samples"], earlier, strict=False)
        ]
        table("answers to held-out examples", ["prompt", "expected", "before", "after"], rows)
    model = output / "model"
    print(f"model in {model}, learning curve in {output / 'curve.svg'}, all of it in {output / 'report.html'}")
    print(f"try it: {info['next'][0]}", flush=True)
