"""Supervised fine-tuning: encoded examples, the loss of the next token, metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from llmctl.data import packing
from llmctl.data.encoded import Encoded
from llmctl.data.lazy_rows import LazyRows, by_length
from llmctl.data.sft import collate as batching
from llmctl.data.sft.encoding import Encoder, identity
from llmctl.data.sft.examples import Example
from llmctl.errors import DataError
from llmctl.io.progress import tracked
from llmctl.jobs import lengths
from llmctl.jobs.finetune import FinetuneJob
from llmctl.train.console import STDOUT, Console
from llmctl.train.methods.base import Method
from llmctl.train.methods.batch_sampler import Collate
from llmctl.train.methods.eval_generate import EvalGenerator
from llmctl.train.methods.evaluate import exact_match, token_metrics
from llmctl.train.methods.examples import (
    ExamplesData,
    ExamplesTask,
    encoded,
    generator_of,
    mixture_of,
    parts_of,
    sampling_of,
)
from llmctl.train.methods.loss import next_token_hidden, next_token_loss
from llmctl.train.task import Batch, Loss


class Row(Protocol):
    """An encoded example: ids, labels (``labels[t]`` is the token after ``input_ids[t]``), and where it comes from."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    source: str


class SftTask(ExamplesTask):
    """Batches and loss of supervised fine-tuning.

    Args:
        train: Encoded examples to train on, each with at least one label.
        dev: Encoded examples to evaluate on; may be empty.
        collate: Rows -> ``input_ids`` and ``labels``, padded on the right.
        batch_size: Rows of a forward pass.
        grad_accumulation: Forward passes of a step.
        extra_metrics: Further metrics of an evaluation, from the model.
        **sampling: Further arguments of an ``ExamplesTask``.
    """

    def __init__(
        self,
        train: Sequence[Row],
        dev: Sequence[Row],
        collate: Collate,
        batch_size: int,
        grad_accumulation: int = 1,
        extra_metrics: Callable[[Any], dict[str, float]] | None = None,
        **sampling: Any,
    ) -> None:
        super().__init__(train, dev, collate, identity, batch_size, grad_accumulation, **sampling)
        self._extra_metrics = extra_metrics

    def hidden(self, model: Any, batch: Batch) -> tuple[Any, ...]:
        """Hidden states, and the sums for an auxiliary loss of the model."""
        return next_token_hidden(model, batch.arrays)

    def loss(self, model: Any, batch: Batch, hidden: tuple[Any, ...]) -> Loss:
        """Sum of the cross entropies of all labels, and their number."""
        return next_token_loss(model, batch.arrays, hidden)

    def evaluate(self, model: Any) -> dict[str, float]:
        """Loss, perplexity, accuracy and the further metrics on the rows to evaluate on."""
        if not self.dev:
            return {}
        extra = self._extra_metrics(model) if self._extra_metrics else {}
        # The metrics are sums: the order of the rows does not matter.
        rows = tracked(
            by_length(self.dev, self.eval_batch_size), "evaluating", -(-len(self.dev) // self.eval_batch_size)
        )
        return {**token_metrics(model, map(self.collate, rows)), **extra}


def prepare(job: FinetuneJob, console: Console = STDOUT) -> ExamplesData:
    """Encodes the job's examples and prints how many were cut or dropped.

    Raises:
        DataError: No example keeps an answer.
        ConfigError: The share of a file is too small.
    """
    settings, train = job.config.data, job.config.train
    encoder = Encoder(job.tokenizer, settings.src_length, settings.max_length, settings.train_on)
    found = _encode(job, encoder, job.train, "train", console)
    parts = parts_of(job, found)
    rows: LazyRows[Any] = found.rows
    dev: Sequence[Any] = _encode(job, encoder, job.dev, "dev", console).rows if job.dev else []
    collate = batching.collate
    if settings.packing != "none":
        rows, parts = _pack(job, rows, parts, console)
        dev, collate = _pack(job, dev, None, console)[0] if job.dev else [], packing.collate
    collate = partial(collate, pad_id=job.tokenizer.pad_id, multiple=lengths.multiple_of(job.config))
    generator = generator_of(job, encoder)
    extra = partial(_exact_match, generator, job.dev) if train.eval_generate and job.dev else None
    task = SftTask(rows, dev, collate, extra_metrics=extra, mixture=mixture_of(job, parts or ()), **sampling_of(job))
    shown = job.dev[: job.config.output.samples]
    return ExamplesData(task, generator, f"{len(job.dev)} held-out examples", shown, _answer)


METHOD = Method(prepare)


def _answer(example: Example) -> str:
    return example.conversation.messages[-1].text


def _encode(
    job: FinetuneJob, encoder: Encoder, examples: Sequence[Example], split: str, console: Console
) -> Encoded[Any]:
    found = encoded(job, examples, encoder.coder, split)
    if not len(found.rows):
        raise DataError(
            f"none of the {found.examples} {split} examples keeps a token of its answer within "
            f"data.max_length={encoder.max_length}; raise data.max_length or lower data.src_length"
        )
    console.print(_summary(split, found))
    return found


def _pack(
    job: FinetuneJob, rows: LazyRows[Any], parts: Sequence[int] | None, console: Console
) -> tuple[LazyRows[packing.PackedRow], Sequence[int]]:
    """The packed rows, and the number of those of each part."""
    settings = job.config.data
    capacity = settings.packed_length or settings.max_length
    seed = job.config.train.seed if settings.shuffle else None
    placed = packing.layout(rows.lengths.tolist(), capacity, settings.packing, parts, seed)
    packed = packing.packed(rows, placed)
    console.print(packing.fill_summary(len(rows), "examples", packed, capacity))
    return packed, placed.parts


def _summary(split: str, found: Encoded[Any]) -> str:
    cut = f", {found.truncated} cut to length" if found.truncated else ""
    dropped = f", {found.dropped} dropped because no answer was left" if found.dropped else ""
    return f"{split}: {found.examples} examples{cut}{dropped}"


def _exact_match(generator: EvalGenerator, examples: Sequence[Example], model: Any) -> dict[str, float]:
    return {"exact_match": exact_match(generator, model, examples, [_answer(example) for example in examples])}
