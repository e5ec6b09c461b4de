"""The output folder of a run: created, cleared or resumed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from llmctl.config import schema
from llmctl.io.atomic import atomic_file, explain_os_errors, remove_leftovers
from llmctl.jobs.added_tokens import BASE
from llmctl.jobs.job import CheckedJob
from llmctl.jobs.loggers import PACKAGES
from llmctl.jobs.paths import CONFIG
from llmctl.train.callbacks.tensor_stats import FILE as STATISTICS
from llmctl.train.methods.dpo_reference import FILE as REFERENCE

LEFTOVERS = (
    CONFIG,
    "run.json",
    "metrics.jsonl",
    "curve.svg",
    "report.html",
    *PACKAGES,
    "best.json",
    "nan_step.json",
    STATISTICS,
    REFERENCE,
    "checkpoints",
    BASE,
    "model",
)
"""What a run writes into its output folder, and what ``overwrite`` deletes there."""


def open_output(job: CheckedJob[Any], start: Path | None) -> None:
    """Creates the output folder, clears it for ``overwrite``, and writes the configuration.

    Raises:
        CheckpointError: It cannot be written.
    """
    output = job.output
    header = f"Run with: llmctl --model {job.model.plugin.card.name} {job.command} config.yaml"
    with explain_os_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        for folder in (output, output / "checkpoints"):
            remove_leftovers(folder, ".*.partial-")
        if job.config.output.overwrite:
            for name in LEFTOVERS:
                path = output / name
                if path == job.model.folder:
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        if start is None:
            (output / "metrics.jsonl").unlink(missing_ok=True)
        with atomic_file(output / CONFIG) as file:
            file.write_text(schema.to_yaml(job.config, header), encoding="utf-8")
