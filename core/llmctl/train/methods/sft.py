"""Supervised fine-tuning: a run over a job's examples. What is trained on is a ``SftTask``, made in ``sft_data``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.jobs.finetune import FinetuneJob
from llmctl.train import trainer as runs
from llmctl.train.loop import Hook
from llmctl.train.methods.sft_data import prepare
from llmctl.train.trainable import base


def run(job: FinetuneJob, hooks: Sequence[Hook] = ()) -> dict[str, Any]:
    """Trains, and writes the output folder; see ``run.run``."""
    return runs.run(job, prepare, base.load, hooks)
