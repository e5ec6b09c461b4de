"""Pretraining on samples of corpora, from a checkpoint or from random weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.data.corpus.samples import Sample, Samples, SampleSpec, open_split
from llmctl.data.sft.encoding import IGNORE_INDEX
from llmctl.errors import DataError
from llmctl.io.progress import tracked
from llmctl.jobs.pretrain import PretrainJob
from llmctl.report.wording import format_metric
from llmctl.tokenizers import Tokenizer
from llmctl.train.console import STDOUT, Console
from llmctl.train.methods.base import Method
from llmctl.train.methods.evaluate import token_metrics
from llmctl.train.methods.loss import next_token_hidden, next_token_loss
from llmctl.train.place import HERE, Place
from llmctl.train.task import Batch, Loss
from llmctl.train.trainable import full
from llmctl.train.trainable.base import Trainable, precision_of

SHOWN_TOKENS = 32
"""Tokens of a prompt, and of its continuation, shown before and after training."""


@dataclass(frozen=True)
class PretrainData:
    """The task of a run, and what else is evaluated.

    Attributes:
        task: What the loop trains and evaluates.
        test: Samples to evaluate the final model on; None = no such evaluation.
        tokenizer: Decodes the texts that are shown.
        held_out: What the metrics are measured on, for the title of a table.
        shown: Number of continuations to show.
    """

    task: PretrainTask
    test: Samples | None
    tokenizer: Tokenizer
    held_out: str
    shown: int

    def samples(self, model: Any) -> list[dict[str, str]]:
        """Beginnings of valid samples, their continuation in the corpus, and the model's, by greedy decoding."""
        from llmctl.infer.eager.generate import generate
        from llmctl.infer.sampling import SamplingParams

        valid = self.task.valid
        count = min(self.shown, len(valid)) if valid else 0
        length = min(SHOWN_TOKENS, self.task.train.seq_length // 2)
        if not valid or not count:
            return []
        rows = [valid[i].input_ids[: 2 * length].tolist() for i in range(count)]
        prompts = [row[:length] for row in rows]
        generated = generate(model, prompts, SamplingParams(max_new_tokens=length), (), self.tokenizer.pad_id)
        texts = [[self.tokenizer.decode(ids) for ids in (row[:length], row[length:], answer.ids)]
                 for row, answer in zip(rows, generated, strict=True)]  # fmt: skip
        return [dict(zip(("prompt", "expected", "answer"), text, strict=True)) for text in texts]


def prepare(job: PretrainJob, console: Console = STDOUT) -> PretrainData:
    """Opens the samples of all splits, building indices that are missing.

    Raises:
        DataError: A split has no documents, or waiting for another process that builds an index timed out.
    """
    data, train = job.config.data, job.config.train
    spec, counts = SampleSpec.of(data), job.config.samples()
    opened = {name: open_split(spec, name, count, job.model.dims.vocab) for name, count in counts.items() if count}
    for name, samples in opened.items():
        console.print(f"{name}: {len(samples):,} samples of {data.seq_length} tokens")
    tokens = sum(share.tokens_per_epoch for share in opened["train"].shares)
    task = PretrainTask(
        opened["train"], opened.get("valid"), train.batch_size, train.grad_accumulation, train.eval_batch_size, tokens
    )
    return PretrainData(
        task, opened.get("test"), job.tokenizer, f"{counts['valid']} valid samples", job.config.output.samples
    )


def load(job: PretrainJob, start: Path | None, place: Place = HERE) -> Trainable:
    """Loads the job's model: a checkpoint, or a new model, whose weights are initialized by the modeling code."""
    model = job.model.at(start) if start else job.model
    layer = place.layer(model, precision_of(job).params, job.config.train.seed)
    place.connect(layer, job.model)
    return full.all_parameters(layer, job, place)


def _test(model: Any, data: PretrainData, console: Console) -> dict[str, Any]:
    if data.test is None:
        return {}
    metrics = data.task.measure(model, data.test)
    rows = [[name.removeprefix("eval_"), format_metric(name, value)] for name, value in metrics.items()]
    console.table(f"{len(data.test)} test samples", ["metric", "value"], rows)
    return {"test": metrics}


METHOD = Method(prepare, load, finish=_test)


class PretrainTask:
    """Batches and loss of pretraining.

    Args:
        train: Samples to train on, enough for all steps.
        valid: Samples of every evaluation; None = no evaluations.
        batch_size: Samples of a forward pass.
        grad_accumulation: Forward passes of a step.
        eval_batch_size: Samples of a forward pass in an evaluation.
        tokens_per_epoch: Tokens of an epoch over all corpora.
    """

    reported: Sequence[str] = ()

    def __init__(
        self,
        train: Samples,
        valid: Samples | None,
        batch_size: int,
        grad_accumulation: int,
        eval_batch_size: int,
        tokens_per_epoch: int,
    ) -> None:
        self.train, self.valid = train, valid
        self.batch_size, self.rows_per_step = batch_size, batch_size * grad_accumulation
        self.steps_per_epoch = max(1, round(tokens_per_epoch / (self.rows_per_step * train.seq_length)))
        self._eval_batch_size = eval_batch_size

    @property
    def fingerprint(self) -> str:
        """Hash of the samples to train on and of their division into steps."""
        what = repr((self.train.fingerprint, self.batch_size, self.rows_per_step))
        return hashlib.sha256(what.encode()).hexdigest()[:32]

    def micro_batches(self, step: int) -> list[Batch]:
        """The batches of a step, from 1.

        Raises:
            DataError: They have no label, since each of their documents has a single token.
        """
        first = (step - 1) * self.rows_per_step
        rows = [self.train[i] for i in range(first, first + self.rows_per_step)]
        if not any(map(_has_label, rows)):
            raise _no_label(rows[0], rows[-1])
        return [self._batch(rows[i : i + self.batch_size]) for i in range(0, len(rows), self.batch_size)]

    def hidden(self, model: Any, batch: Batch) -> tuple[Any, ...]:
        """Hidden states, and the sums for an auxiliary loss of the model."""
        return next_token_hidden(model, batch.arrays)

    def loss(self, model: Any, batch: Batch, hidden: tuple[Any, ...]) -> Loss:
        """Sum of the cross entropies of all labels, and their number."""
        return next_token_loss(model, batch.arrays, hidden)

    def evaluate(self, model: Any) -> dict[str, float]:
        """Loss, perplexity and accuracy on the samples of the valid split."""
        return self.measure(model, self.valid) if self.valid else {}

    def measure(self, model: Any, samples: Samples) -> dict[str, float]:
        """Loss, perplexity and accuracy on samples.

        Raises:
            DataError: As for `micro_batches`.
        """
        return token_metrics(model, self._batches(samples))

    def _batches(self, samples: Samples) -> Iterator[dict[str, np.ndarray]]:
        labelled = False
        starts = range(0, len(samples), self._eval_batch_size)
        for start in tracked(starts, "evaluating", len(starts)):
            stop = min(start + self._eval_batch_size, len(samples))
            rows = [samples[i] for i in range(start, stop)]
            labelled = labelled or any(map(_has_label, rows))
            yield collate(rows, samples.separate)
        if not labelled:
            raise _no_label(samples[0], samples[len(samples) - 1])

    def _batch(self, rows: Sequence[Sample]) -> Batch:
        arrays = collate(rows, self.train.separate)
        return Batch(arrays, [row.source for row in rows], arrays["input_ids"].size)


def _has_label(row: Sample) -> bool:
    return bool((row.labels != IGNORE_INDEX).any())


def _no_label(first: Sample, last: Sample) -> DataError:
    return DataError(
        f"samples {first.source} to {last.source} have no label: each of their documents has a single token, and with "
        "data.separate_documents no token is predicted from another document; set it to false, or remove such documents"
    )


def collate(rows: Sequence[Sample], separate: bool) -> dict[str, np.ndarray]:
    """``input_ids`` and ``labels`` [B, T]; for separate documents also ``position_ids`` and ``document_end``."""
    batch = {"input_ids": np.stack([row.input_ids for row in rows]), "labels": np.stack([row.labels for row in rows])}
    if separate:
        layouts = [_layout(row.document_starts, len(row.input_ids)) for row in rows]
        batch["position_ids"], batch["document_end"] = (np.stack(part) for part in zip(*layouts, strict=True))
    return batch


def _layout(starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions that restart at each document, and the column at which the document of each token ends."""
    ends = np.append(starts[1:], length)
    sizes = ends - starts
    return np.arange(length) - np.repeat(starts, sizes), np.repeat(ends, sizes)
