"""What fine-tuning trains and evaluates on: rows encoded from a job's examples, and answers generated for held-out ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmctl.data import packing
from llmctl.data.sft import collate as batching
from llmctl.data.sft.encoding import Counts, Encoder
from llmctl.data.sft.examples import Example
from llmctl.errors import DataError
from llmctl.jobs.finetune import FinetuneJob
from llmctl.tokenizers import Tokenizer
from llmctl.train.methods.eval_generate import Answers
from llmctl.train.methods.evaluate import exact_match
from llmctl.train.methods.sft_task import SftTask


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
