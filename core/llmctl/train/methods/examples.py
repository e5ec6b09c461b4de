"""What training on examples and on pairs share: batches of rows, and held-out examples to show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.card.rope import context_length
from llmctl.data.encoded import Coder, Encoded, encode
from llmctl.data.lazy_rows import Identity
from llmctl.data.mixing import Mixture
from llmctl.data.streaming import StreamedExamples, encode_streamed
from llmctl.io.digest import sha256_of_files
from llmctl.io.progress import Progress
from llmctl.train.methods.batch_sampler import BatchSampler, Collate
from llmctl.train.methods.eval_generate import EvalGenerator
from llmctl.train.task import Batch, Task

TOKENIZER_FILES = (".json", ".jinja", ".model", ".tiktoken", ".txt")
"""Suffixes of the files of a model folder that say how texts are encoded."""


class ExamplesTask:
    """Batches of encoded rows; a method adds the loss and the evaluation, and ``reported``, if its losses have further sums.

    Args:
        train: Rows to train on.
        dev: Rows to evaluate on; may be empty.
        collate: Rows -> arrays.
        identity: Integers that identify the content of a row, where the rows have no digest.
        batch_size: Rows of a forward pass.
        grad_accumulation: Forward passes of a step.
        eval_batch_size: Rows of a forward pass in an evaluation.
        seed: Seed of the shuffling.
        shuffle: Whether each epoch is shuffled.
        mixture: Which rows an epoch has; None = all.
    """

    reported: Sequence[str] = ()

    def __init__(
        self,
        train: Sequence[Any],
        dev: Sequence[Any],
        collate: Collate,
        identity: Identity,
        batch_size: int,
        grad_accumulation: int = 1,
        eval_batch_size: int = 8,
        seed: int = 0,
        shuffle: bool = True,
        mixture: Mixture | None = None,
    ) -> None:
        self._sampler = BatchSampler(train, collate, identity, batch_size, grad_accumulation, seed, shuffle, mixture)
        self.steps_per_epoch = self._sampler.steps_per_epoch
        self.dev, self.collate, self.eval_batch_size = dev, collate, eval_batch_size

    @property
    def train(self) -> Sequence[Any]:
        """The rows to train on."""
        return self._sampler.rows

    @property
    def fingerprint(self) -> str:
        """Hash of the rows to train on and of their division into steps."""
        return self._sampler.fingerprint

    def micro_batches(self, step: int) -> list[Batch]:
        """The batches of a step, from 1; the last step of an epoch may have fewer rows."""
        return self._sampler.micro_batches(step)


@dataclass(frozen=True)
class ExamplesData:
    """The task of a run, and the held-out examples to show.

    Attributes:
        task: What the loop trains and evaluates.
        generator: Generates answers.
        held_out: What the metrics are measured on, for the title of a table.
        shown: Examples whose answers are shown before and after training.
        expected: The expected answer of an example.
    """

    task: Task
    generator: EvalGenerator
    held_out: str
    shown: Sequence[Any]
    expected: Callable[[Any], str]

    def samples(self, model: Any) -> list[dict[str, str]]:
        """Prompt, expected and generated answer of each example to show."""
        answers = self.generator(model, self.shown) if self.shown else []
        return [
            {"prompt": example.question, "expected": self.expected(example), "answer": answer.strip()}
            for example, answer in zip(self.shown, answers, strict=True)
        ]


def generator_of(job: Any, encoder: Any) -> EvalGenerator:
    """Generates answers to a job's held-out examples.

    Args:
        job: The job.
        encoder: Encodes prompts as in training.
    """
    train, positions = job.config.train, context_length(job.model.dims)
    return EvalGenerator(encoder, train.eval_batch_size, train.eval_max_new_tokens, positions)


def encoded(job: Any, examples: Sequence[Any], coder: Coder[Any], split: str) -> Encoded[Any]:
    """The examples of a split, encoded.

    Args:
        job: The job.
        examples: Its examples.
        coder: How they become rows.
        split: ``"train"`` or ``"dev"``.
    """
    data, model = job.config.data, job.config.model
    with Progress(f"encoding the {split} data", len(examples)) as progress:
        if not isinstance(examples, StreamedExamples):
            return encode(examples, coder, True, progress)
        names = ("src_length", "max_prompt_length", "max_length", "train_on", "chat_template")
        settings = {
            **{name: getattr(data, name) for name in names if hasattr(data, name)},
            "command": job.command,
            "card": job.model.plugin.card.hash(),
            "tokenizer": sha256_of_files(job.model.folder, TOKENIZER_FILES),
            "added": [model.add_tokens, model.add_special_tokens],
        }
        cache = Path(data.index_cache).expanduser() if data.index_cache else None
        return encode_streamed(examples, coder, settings, cache, progress)


def parts_of(job: Any, found: Encoded[Any]) -> list[int] | None:
    """Number of encoded examples of each entry of ``data.train``, where they have weights; None where they are one."""
    return found.parts(job.examples.counts) if job.config.data.weights else None


def mixture_of(job: Any, parts: Sequence[int]) -> Mixture | None:
    """The mixture that the configuration asks for.

    Args:
        job: The job.
        parts: Rows of each entry of ``data.train``.

    Raises:
        ConfigError: The share of an entry is too small.
    """
    if not job.config.data.weights:
        return None
    mixture = Mixture(parts, job.config.data.weights)
    mixture.check(job.config.data.train)
    return mixture


def sampling_of(job: Any) -> dict[str, Any]:
    """The arguments of an ``ExamplesTask`` that are in the configuration."""
    train = job.config.train
    return {
        "batch_size": train.batch_size,
        "grad_accumulation": train.grad_accumulation,
        "eval_batch_size": train.eval_batch_size,
        "seed": train.seed,
        "shuffle": job.config.data.shuffle,
    }
