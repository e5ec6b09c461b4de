"""Direct preference optimisation: encoded pairs, and what the model is measured against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llmctl.config.dpo import DpoLossConfig
from llmctl.data import packing
from llmctl.data.preference import rows as pair_rows
from llmctl.data.preference.encoding import Pair, PairCounts, PairEncoder
from llmctl.data.preference.examples import Preference
from llmctl.errors import ConfigError, DataError
from llmctl.jobs.dpo import DpoJob
from llmctl.nn.dropout import disable_dropout
from llmctl.train.methods import dpo_reference
from llmctl.train.methods.base import Method
from llmctl.train.methods.dpo_loss import LOSSES, Ratios
from llmctl.train.methods.dpo_task import DpoTask, Reference
from llmctl.train.methods.examples import ExamplesData, answers_of, sampling_of
from llmctl.train.trainable.base import Subject


def prepare(job: DpoJob) -> ExamplesData:
    """Encodes a job's preferences and prints what was cut or dropped.

    Raises:
        DataError: Of no pair is a difference left.
    """
    settings = job.config.data
    encoder = PairEncoder(job.tokenizer, settings.max_prompt_length, settings.max_length)
    rows = _rows(job, _encode(encoder, job.train, "train"), settings.shuffle)
    dev = _rows(job, _encode(encoder, job.dev, "dev"), False) if job.dev else []
    collate = partial(pair_rows.collate, pad_id=job.tokenizer.pad_id, multiple=settings.pad_to_multiple_of)
    task = DpoTask(rows, dev, collate, loss_of(job.config.dpo), job.config.dpo.beta, **sampling_of(job))
    shown = job.dev[: job.config.output.samples]
    return ExamplesData(task, answers_of(job, encoder), f"{len(job.dev)} held-out pairs", shown, _chosen)


def bind(job: DpoJob, data: ExamplesData, trained: Subject) -> None:
    """Gives the task the reference, which may be the model's own layers; neither has dropout."""
    disable_dropout(trained.model)
    data.task.reference = reference(job, trained, data.task)


METHOD = Method(prepare, bind=bind)


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
    key = dpo_reference.key_of(job.model.weights, task, job.config.model.dtype, job.config.method.base)
    return dpo_reference.Precomputed(job.output / dpo_reference.FILE, key, task, trained.reference)


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
    pairs = packing.shuffled(pairs, settings.packing, mixed, job.config.train.seed)
    capacity = settings.packed_length or settings.max_length
    rows = pair_rows.rows_of(pairs, settings.packing, capacity, job.model.dims.get("window"))
    if settings.packing != "none":
        print(packing.fill_summary(len(pairs), "pairs", rows, capacity), flush=True)
    return rows


def _summary(split: str, counts: PairCounts) -> str:
    cut = f", {counts.truncated} cut to length" if counts.truncated else ""
    shortened = f", {counts.shortened} without their oldest turns" if counts.shortened else ""
    why = "dropped because an answer was empty or both were the same within the length"
    return f"{split}: {counts.pairs} pairs{cut}{shortened}{f', {counts.dropped} {why}' if counts.dropped else ''}"


def _chosen(row: Preference) -> str:
    return row.chosen
