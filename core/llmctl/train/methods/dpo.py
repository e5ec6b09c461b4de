"""Direct preference optimisation: a run over a job's pairs. What is trained on is a ``DpoTask``, made in ``dpo_data``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llmctl.config.dpo import DpoLossConfig
from llmctl.data import packing
from llmctl.data.preference import rows as pair_rows
from llmctl.data.preference.encoding import Pair, PairCounts, PairEncoder
from llmctl.data.preference.examples import Preference
from llmctl.errors import ConfigError, DataError
from llmctl.jobs.dpo import DpoJob
from llmctl.nn.dropout import switch_off
from llmctl.train import trainer as runs
from llmctl.train.loop import Hook
from llmctl.train.methods import dpo, dpo_reference
from llmctl.train.methods.dpo_loss import LOSSES, Ratios
from llmctl.train.methods.dpo_task import DpoTask, Reference
from llmctl.train.methods.eval_generate import Answers
from llmctl.train.trainable import base
from llmctl.train.trainable.base import Subject


def run(job: DpoJob, hooks: Sequence[Hook] = ()) -> dict[str, Any]:
    """Trains, and writes the output folder; see ``run.run``."""
    data = None

    def prepare(job: DpoJob) -> dpo.DpoData:
        nonlocal data
        data = dpo.prepare(job)
        return data

    def load(job: DpoJob, start: Path | None) -> Subject:
        assert data is not None
        loaded = base.load(job, start)
        switch_off(loaded.model)
        data.task.reference = reference(job, loaded, data.task)
        return loaded

    return runs.run(job, prepare, load, hooks)


def reference(job: DpoJob, trained: Subject, task: DpoTask) -> Reference:
    """What the job's model is measured against.

    Raises:
        ConfigError: The way to train keeps no model as it was.
    """
    settings = job.config.dpo
    if settings.reference_free:
        return dpo_reference.Free()
    if trained.reference is None:
        raise ConfigError(
            f"method.name={job.config.method.name} keeps no reference model; choose another, or set "
            "dpo.reference_free=true"
        )
    if not settings.precompute_reference:
        return dpo_reference.Live(trained.reference())
    key = dpo_reference.key_of(job.model, task, job.config.model.dtype, job.config.method.base)
    return dpo_reference.Precomputed(job.output / runs.REFERENCE, key, task, trained.reference)


@dataclass(frozen=True)
class DpoData:
    """The task of a run, and the held-out preferences to show.

    Attributes:
        task: What the loop trains and evaluates on.
        answers: Generates answers.
        held_out: What the metrics are measured on, for a table's title.
        shown: Preferences whose answers are shown.
    """

    task: DpoTask
    answers: Answers
    held_out: str
    shown: Sequence[Preference]

    def samples(self, model: Any) -> list[dict[str, str]]:
        """Prompt, chosen and given answer of each preference to show."""
        if not self.shown:
            return []
        given = self.answers(model, self.shown)
        return [
            {"prompt": row.src[-1], "expected": row.chosen, "answer": answer.strip()}
            for row, answer in zip(self.shown, given, strict=True)
        ]


def prepare(job: DpoJob) -> DpoData:
    """Encodes a job's preferences and prints what was cut or dropped.

    Raises:
        DataError: Of no pair is a difference left.
    """
    settings, train = job.config.data, job.config.train
    encoder = PairEncoder(job.tokenizer, settings.max_prompt_length, settings.max_length)
    rows = _rows(job, _encode(encoder, job.train, "train"), settings.shuffle)
    dev = _rows(job, _encode(encoder, job.dev, "dev"), False) if job.dev else []
    task = DpoTask(
        rows,
        dev,
        partial(pair_rows.collate, pad_id=job.tokenizer.pad_id, multiple=settings.pad_to_multiple_of),
        loss_of(job.config.dpo),
        job.config.dpo.beta,
        train.batch_size,
        train.grad_accumulation,
        train.eval_batch_size,
        train.seed,
        settings.shuffle,
    )
    answers = Answers(encoder, train.eval_batch_size, train.eval_max_new_tokens, job.dims.get("max_positions") or 0)
    return DpoData(task, answers, f"{len(job.dev)} held-out pairs", job.dev[: job.config.output.samples])


def loss_of(settings: DpoLossConfig) -> Callable[[Ratios], Any]:
    """The loss of pairs that a configuration asks for."""
    smoothing = {"smoothing": settings.label_smoothing} if settings.label_smoothing else {}
    return partial(LOSSES[settings.loss], beta=settings.beta, **smoothing)


def _encode(encoder: PairEncoder, rows: Sequence[Preference], split: str) -> list[Pair]:
    pairs, counts = encoder.encode_all(rows)
    if not pairs:
        raise DataError(
            f"of none of the {counts.pairs} {split} pairs is a difference between the answers left within "
            f"data.max_length={encoder.max_length}; raise it, or lower data.max_prompt_length"
        )
    print(_summary(split, counts), flush=True)
    return pairs


def _rows(job: DpoJob, pairs: Sequence[Pair], mixed: bool) -> list[pair_rows.PairRow]:
    settings = job.config.data
    pairs = packing.mixed(pairs, settings.packing, mixed, job.config.train.seed)
    capacity = settings.packed_length or settings.max_length
    rows = pair_rows.rows_of(pairs, settings.packing, capacity, job.dims.get("window"))
    if settings.packing != "none":
        print(packing.filling(len(pairs), "pairs", rows, capacity), flush=True)
    return rows


def _summary(split: str, counts: PairCounts) -> str:
    cut = f", {counts.cut} cut to length" if counts.cut else ""
    shortened = f", {counts.shortened} without their oldest turns" if counts.shortened else ""
    why = "dropped because an answer was empty or both were the same within the length"
    return f"{split}: {counts.pairs} pairs{cut}{shortened}{f', {counts.dropped} {why}' if counts.dropped else ''}"
