"""``llmctl eval --tasks``: tasks of lm-evaluation-harness, models side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from llmctl.commands.engine_options import show_notes

if TYPE_CHECKING:
    from llmctl.infer.handle import EngineHandle
    from llmctl.infer.harness.run import Metric, Tasks
    from llmctl.tokenizers import Tokenizer

Model = tuple[str, "EngineHandle", "Tokenizer"]
"""Its name in the table, its engine, checked and not loaded, and its tokenizer."""


def tasks_of(given: Mapping[str, Any]) -> Tasks:
    """The tasks that options name.

    Raises:
        LlmctlError: lm-evaluation-harness is not installed, or has no such task.
    """
    from llmctl.infer.harness.run import open_tasks

    names = [name.strip() for name in given["tasks"].split(",") if name.strip()]
    if not names:
        raise click.UsageError("--tasks names no task; give names with commas between them: --tasks arc_easy,hellaswag")
    return open_tasks(
        names, given["include_path"], few_shot=given["num_fewshot"], limit=given["limit"], chat=given["apply_chat_template"]
    )  # fmt: skip


def run_tasks(models: Sequence[Model], tasks: Tasks, as_json: bool) -> None:
    """Prints the results of models on tasks.

    Args:
        models: The models.
        tasks: The tasks.
        as_json: Whether JSON is printed instead of a table.

    Raises:
        LlmctlError: As for ``harness.run.run``.
    """
    from llmctl.infer.harness.run import run
    from llmctl.infer.harness.scorer import Scorer

    found: list[list[Metric]] = []
    facts = []
    for name, handle, tokenizer in models:
        started = time.monotonic()
        scorer = Scorer(handle, tokenizer)
        try:
            found.append(run(scorer, tasks))
        finally:
            scorer.close()
        show_notes(scorer.notes)
        seconds = round(time.monotonic() - started, 2)
        facts.append({"model": name, "engine": handle.engine, "tasks": _values(found[-1]), "seconds": seconds})
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        _print([name for name, _, _ in models], found)


def _values(metrics: Sequence[Metric]) -> dict[str, dict[str, float | int | None]]:
    values: dict[str, dict[str, float | int | None]] = {}
    for one in metrics:
        row = values.setdefault(one.task, {"documents": one.documents})
        row |= {one.name: one.value, f"{one.name}_stderr": one.error}
    return values


def _print(models: Sequence[str], found: Sequence[Sequence[Metric]]) -> None:
    from llmctl.train.console import STDOUT

    cells = [{(one.task, one.name): one for one in metrics} for metrics in found]
    rows = []
    for key, first in cells[0].items():
        count = "" if first.documents is None else f"{first.documents:,}"
        rows.append([first.task, count, first.name, *(_cell(one[key]) for one in cells)])
    STDOUT.table("", ["task", "documents", "metric", *models], rows)


def _cell(metric: Metric) -> str:
    return f"{metric.value:.4f}" + ("" if metric.error is None else f" ± {metric.error:.4f}")
