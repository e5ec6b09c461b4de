"""What training on examples shares, supervised or on pairs: updates of rows, and held-out examples to show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.train.methods.batch_sampler import Batches, Collate
from llmctl.train.methods.eval_generate import Answers
from llmctl.train.task import Batch, Task


class ExamplesTask:
    """Updates of encoded rows; what is left to a method is the loss and the evaluation.

    Args:
        train: Rows to train on.
        dev: Rows to evaluate on; may be empty.
        collate: Rows -> arrays.
        identity: Whole numbers that tell a row from others.
        batch_size: Rows of a forward pass.
        grad_accumulation: Forward passes of an update.
        eval_batch_size: Rows of a forward pass in an evaluation.
        seed: Of the order of rows.
        shuffle: Whether each epoch has an order of its own.
    """

    def __init__(
        self,
        train: Sequence[Any],
        dev: Sequence[Any],
        collate: Collate,
        identity: Callable[[Any], Sequence[int]],
        batch_size: int,
        grad_accumulation: int = 1,
        eval_batch_size: int = 8,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self._batches = Batches(train, collate, identity, batch_size, grad_accumulation, seed, shuffle)
        self.steps_per_epoch = self._batches.steps_per_epoch
        self.dev, self.collate, self.eval_batch_size = dev, collate, eval_batch_size

    @property
    def train(self) -> Sequence[Any]:
        """The rows to train on."""
        return self._batches.rows

    @property
    def fingerprint(self) -> str:
        """Hash of the rows to train on and of how they are divided into updates."""
        return self._batches.fingerprint

    def micro_batches(self, step: int) -> list[Batch]:
        """The rows of update ``step`` (from 1); the last update of an epoch may have fewer."""
        return self._batches.of_step(step)


@dataclass(frozen=True)
class ExamplesData:
    """The task of a run, and the held-out examples to show.

    Attributes:
        task: What the loop trains and evaluates on.
        answers: Generates answers.
        held_out: What the metrics are measured on, for a table's title.
        shown: Examples whose answers are shown before and after training.
        expected: The right answer of an example.
    """

    task: Task
    answers: Answers
    held_out: str
    shown: Sequence[Any]
    expected: Callable[[Any], str]

    def samples(self, model: Any) -> list[dict[str, str]]:
        """Prompt, expected and given answer of each example to show."""
        given = self.answers(model, self.shown) if self.shown else []
        return [
            {"prompt": example.src[-1], "expected": self.expected(example), "answer": answer.strip()}
            for example, answer in zip(self.shown, given, strict=True)
        ]


def answers_of(job: Any, encoder: Any) -> Answers:
    """What generates answers to a job's held-out examples.

    Args:
        job: The job.
        encoder: Makes prompts as in training.
    """
    train, positions = job.config.train, job.model.dims.get("max_positions") or 0
    return Answers(encoder, train.eval_batch_size, train.eval_max_new_tokens, positions)


def sampling_of(job: Any) -> dict[str, Any]:
    """How a job's rows are divided into updates: arguments of an ``ExamplesTask``."""
    train = job.config.train
    return {
        "batch_size": train.batch_size,
        "grad_accumulation": train.grad_accumulation,
        "eval_batch_size": train.eval_batch_size,
        "seed": train.seed,
        "shuffle": job.config.data.shuffle,
    }
