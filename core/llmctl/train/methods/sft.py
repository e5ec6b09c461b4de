"""Supervised fine-tuning: a run over a job's examples. What is trained on is a ``SftTask``, made in ``sft_data``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from llmctl.data import packing
from llmctl.data.sft import collate as batching
from llmctl.data.sft.encoding import Counts, Encoder
from llmctl.data.sft.examples import Example
from llmctl.errors import DataError
from llmctl.jobs.finetune import FinetuneJob
from llmctl.tokenizers import Tokenizer
from llmctl.train import trainer as runs
from llmctl.train.loop import Hook
from llmctl.train.methods.batch_sampler import Batches, Collate, by_length
from llmctl.train.methods.eval_generate import Answers
from llmctl.train.methods.evaluate import exact_match, token_metrics
from llmctl.train.methods.loss import next_token_loss
from llmctl.train.task import Batch, Loss
from llmctl.train.trainable import base


def run(job: FinetuneJob, hooks: Sequence[Hook] = ()) -> dict[str, Any]:
    """Trains, and writes the output folder; see ``run.run``."""
    return runs.run(job, prepare, base.load, hooks)


class Row(Protocol):
    """An encoded example: ids, labels already shifted, and the place it comes from."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    source: str


class SftTask:
    """Batches and loss of supervised fine-tuning.

    Args:
        train: Encoded examples to train on, each with at least one label.
        dev: Encoded examples to evaluate on; may be empty.
        collate: Rows -> ``input_ids`` and ``labels``, padded on the right.
        batch_size: Rows of a forward pass.
        grad_accumulation: Forward passes of an update.
        eval_batch_size: Rows of a forward pass in an evaluation.
        seed: Of the order of examples.
        shuffle: Whether each epoch has an order of its own.
        extra_metrics: Further metrics of an evaluation, from the model.
    """

    def __init__(
        self,
        train: Sequence[Row],
        dev: Sequence[Row],
        collate: Collate,
        batch_size: int,
        grad_accumulation: int = 1,
        eval_batch_size: int = 8,
        seed: int = 0,
        shuffle: bool = True,
        extra_metrics: Callable[[Any], dict[str, float]] | None = None,
    ) -> None:
        self._batches = Batches(train, collate, _identity, batch_size, grad_accumulation, seed, shuffle)
        self.steps_per_epoch = self._batches.steps_per_epoch
        self._collate = collate
        # The metrics are sums and do not depend on the order.
        self._dev = by_length(dev, eval_batch_size)
        self._extra_metrics = extra_metrics

    @property
    def fingerprint(self) -> str:
        """Hash of the rows to train on and of how they are divided into updates."""
        return self._batches.fingerprint

    def micro_batches(self, step: int) -> list[Batch]:
        """The rows of update ``step`` (from 1); the last update of an epoch may have fewer."""
        return self._batches.of_step(step)

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Sum of the cross entropies of all labels, and their number."""
        return next_token_loss(model, batch.arrays)

    def evaluate(self, model: Any) -> dict[str, float]:
        """Loss, perplexity, accuracy and the further metrics on the rows to evaluate on."""
        if not self._dev:
            return {}
        extra = self._extra_metrics(model) if self._extra_metrics else {}
        return {**token_metrics(model, map(self._collate, self._dev)), **extra}


def _identity(row: Row) -> list[int]:
    return [len(row.input_ids), *row.input_ids, *row.labels]


@dataclass(frozen=True)
class SftData:
    """The task of a run, its tokenizer, and the held-out examples to show.

    Attributes:
        tokenizer: With the chat template of the run.
        task: What the loop trains and evaluates on.
        answers: Generates answers.
        held_out: What the metrics are measured on, for a table's title.
        shown: Examples whose answers are shown before and after training.
    """

    tokenizer: Tokenizer
    task: SftTask
    answers: Answers
    held_out: str
    shown: Sequence[Example]

    def samples(self, model: Any) -> list[dict[str, str]]:
        """Prompt, expected and given answer of each example to show."""
        if not self.shown:
            return []
        given = self.answers(model, self.shown)
        return [
            {"prompt": example.src[-1], "expected": example.tgt[-1], "answer": answer.strip()}
            for example, answer in zip(self.shown, given, strict=True)
        ]


def prepare(job: FinetuneJob) -> SftData:
    """Encodes a job's examples and prints what was cut or dropped.

    Raises:
        DataError: No example keeps an answer.
    """
    settings, train = job.config.data, job.config.train
    encoder = Encoder(job.tokenizer, settings.src_length, settings.max_length)
    rows: Sequence[Any] = _encode(encoder, job.train, "train")
    dev: Sequence[Any] = _encode(encoder, job.dev, "dev") if job.dev else []
    collate = batching.collate
    if settings.packing != "none":
        rows, dev, collate = _packed(job, rows), _packed(job, dev), packing.collate
    answers = Answers(encoder, train.eval_batch_size, train.eval_max_new_tokens, job.dims.get("max_positions") or 0)
    extra = partial(_exact_match, answers, job.dev) if train.eval_generate and job.dev else None
    task = SftTask(
        rows,
        dev,
        partial(collate, pad_id=job.tokenizer.pad_id, multiple=settings.pad_to_multiple_of),
        train.batch_size,
        train.grad_accumulation,
        train.eval_batch_size,
        train.seed,
        settings.shuffle,
        extra,
    )
    return SftData(
        job.tokenizer, task, answers, f"{len(job.dev)} held-out examples", job.dev[: job.config.output.samples]
    )


def _encode(encoder: Encoder, examples: Sequence[Example], split: str) -> list[Any]:
    rows, counts = encoder.encode_all(examples)
    if not rows:
        raise DataError(
            f"none of the {counts.examples} {split} examples keeps a token of its answer within "
            f"data.max_length={encoder.max_length}; raise data.max_length or lower data.src_length"
        )
    print(_summary(split, counts), flush=True)
    return rows


def _packed(job: FinetuneJob, rows: Sequence[Any]) -> list[packing.PackedRow]:
    settings = job.config.data
    rows = packing.mixed(rows, settings.packing, settings.shuffle, job.config.train.seed)
    capacity = settings.packed_length or settings.max_length
    packed = packing.pack(rows, capacity, settings.packing)
    if packed:
        print(packing.filling(len(rows), "examples", packed, capacity), flush=True)
    return packed


def _summary(split: str, counts: Counts) -> str:
    cut = f", {counts.truncated} cut to length" if counts.truncated else ""
    dropped = f", {counts.dropped} dropped because no answer was left" if counts.dropped else ""
    return f"{split}: {counts.examples} examples{cut}{dropped}"


def _exact_match(answers: Answers, examples: Sequence[Example], model: Any) -> dict[str, float]:
    return {"exact_match": exact_match(answers, model, examples, [example.tgt[-1] for example in examples])}
