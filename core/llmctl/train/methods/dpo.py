"""Direct preference optimization (DPO): encoded pairs, and the reference model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llmctl.config.dpo import DpoLossConfig
from llmctl.data import packing
from llmctl.data.encoded import Encoded
from llmctl.data.lazy_rows import LazyRows
from llmctl.data.preference import rows as pair_rows
from llmctl.data.preference.encoding import Pair, PairEncoder
from llmctl.data.preference.examples import Preference
from llmctl.errors import ConfigError, DataError
from llmctl.jobs import lengths
from llmctl.jobs.dpo import DpoJob
from llmctl.nn.dropout import disable_dropout
from llmctl.parallel.ranks import ALONE, Ranks
from llmctl.train.console import STDOUT, Console
from llmctl.train.methods import dpo_reference
from llmctl.train.methods.base import Method
from llmctl.train.methods.dpo_loss import LOSSES, Ratios
from llmctl.train.methods.dpo_task import DpoTask, Reference
from llmctl.train.methods.examples import (
    ExamplesData,
    encoded,
    generator_of,
    mixture_of,
    parts_of,
    sampling_of,
)
from llmctl.train.trainable.base import Trainable


def prepare(job: DpoJob, console: Console = STDOUT) -> ExamplesData:
    """Encodes the job's pairs and prints how many were cut or dropped.

    Raises:
        DataError: No pair keeps a difference between its answers.
        ConfigError: The share of a file is too small.
    """
    settings = job.config.data
    encoder = PairEncoder(job.tokenizer, settings.max_prompt_length, settings.max_length)
    found = _encode(job, encoder, job.train, "train", console)
    rows, parts = _rows(job, found.rows, parts_of(job, found), settings.shuffle, console)
    dev: Sequence[Any] = []
    if job.dev:
        dev, _ = _rows(job, _encode(job, encoder, job.dev, "dev", console).rows, None, False, console)
    collate = partial(pair_rows.collate, pad_id=job.tokenizer.pad_id, multiple=lengths.multiple_of(job.config))
    sampling = {"mixture": mixture_of(job, parts), **sampling_of(job)}
    task = DpoTask(rows, dev, collate, loss_of(job.config.dpo), job.config.dpo.beta, **sampling)
    shown = job.dev[: job.config.output.samples]
    return ExamplesData(task, generator_of(job, encoder), f"{len(job.dev)} held-out pairs", shown, _chosen)


def bind(job: DpoJob, data: ExamplesData, trainable: Trainable, console: Console = STDOUT) -> None:
    """Gives the task its reference. Dropout is switched off, since log-probabilities are compared."""
    disable_dropout(trainable.model)
    data.task.reference = reference(job, trainable, data.task, console)


def start(data: ExamplesData, ranks: Ranks = ALONE) -> None:
    """Computes the log-probabilities of the reference, or reads them, where the configuration asks for them in advance."""
    if isinstance(data.task.reference, dpo_reference.PrecomputedLogProbs):
        data.task.reference.prepare(ranks)


METHOD = Method(prepare, bind=bind, start=start)


def reference(job: DpoJob, trainable: Trainable, task: DpoTask, console: Console = STDOUT) -> Reference:
    """The reference that the configuration asks for.

    Raises:
        ConfigError: The training method cannot give the model as it was before training.
    """
    settings = job.config.dpo
    if settings.reference_free:
        return dpo_reference.ReferenceFree()
    if trainable.reference is None:
        raise ConfigError(
            f"method.name={job.config.method.name} keeps no reference model; choose another, or set "
            "dpo.reference_free=true"
        )
    if not settings.precompute_reference:
        return dpo_reference.ReferenceModel(trainable.reference())
    key = dpo_reference.key_of(job.model.weights, task, job.config.model.dtype, job.config.method.base)
    return dpo_reference.PrecomputedLogProbs(job.output / dpo_reference.FILE, key, task, trainable.reference, console)


def loss_of(settings: DpoLossConfig) -> Callable[[Ratios], Any]:
    """The loss that a configuration asks for."""
    smoothing = {"smoothing": settings.label_smoothing} if settings.label_smoothing else {}
    return partial(LOSSES[settings.loss], beta=settings.beta, **smoothing)


def _encode(
    job: DpoJob, encoder: PairEncoder, pairs: Sequence[Preference], split: str, console: Console
) -> Encoded[Pair]:
    found = encoded(job, pairs, encoder.coder(job.model.dims.get("window")), split)
    if not len(found.rows):
        raise DataError(
            f"none of the {found.examples} {split} pairs keeps a difference between its answers within "
            f"data.max_length={encoder.max_length}; raise it, or lower data.max_prompt_length"
        )
    console.print(_summary(split, found))
    return found


def _rows(
    job: DpoJob, pairs: LazyRows[Pair], parts: Sequence[int] | None, shuffle: bool, console: Console
) -> tuple[LazyRows[pair_rows.PairRow], Sequence[int]]:
    """The rows, packed if the configuration asks for it, and the number of those of each part."""
    settings = job.config.data
    capacity = settings.packed_length or settings.max_length
    seed = job.config.train.seed if shuffle else None
    placed = packing.layout(pairs.lengths.tolist(), capacity, settings.packing, parts, seed)
    rows = pair_rows.packed(pairs, placed, job.model.dims.get("window"))
    if settings.packing != "none":
        console.print(packing.fill_summary(len(pairs), "pairs", rows, capacity))
    return rows, placed.parts


def _summary(split: str, found: Encoded[Pair]) -> str:
    cut = f", {found.truncated} cut to length" if found.truncated else ""
    shortened = f", {found.shortened} without their oldest turns" if found.shortened else ""
    why = "dropped because an answer was empty or both were the same within the length"
    return f"{split}: {found.examples} pairs{cut}{shortened}{f', {found.dropped} {why}' if found.dropped else ''}"


def _chosen(row: Preference) -> str:
    return row.chosen.text
