"""A checked job: a configuration with everything that its checks opened, read and loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from llmctl.adapters import base_model
from llmctl.checkpoint.build import CheckedModel
from llmctl.jobs import quantized_base
from llmctl.jobs.examples import Examples
from llmctl.plugins import Families
from llmctl.tokenizers import Tokenizer

C = TypeVar("C")
"""The configuration's class."""

E = TypeVar("E")
"""An example: a parsed line of training data."""


@dataclass(frozen=True)
class CheckedJob(Generic[C]):
    """A configuration that passed every check.

    Attributes:
        command: Name of the command that runs it.
        config: The configuration.
        model: The model that training starts from.
        tokenizer: Saved with the trained model; with the chat template that the configuration asks for.
        output: The output folder.
    """

    command: ClassVar[str]
    config: C
    model: CheckedModel
    tokenizer: Tokenizer
    output: Path

    @cached_property
    def base(self) -> dict[str, Any]:
        """Identifies the weights that training starts from; empty for a new model."""
        return base_model.record_of(self.model) if self.model.weights else {}

    @property
    def notes(self) -> Sequence[str]:
        """Lines on what the checks found, for the beginning of the run."""
        return ()

    def summary(self) -> str:
        """One line on what would run."""
        raise NotImplementedError


@dataclass(frozen=True)
class ExamplesJob(CheckedJob[C], Generic[C, E]):
    """A checked job that trains on files of examples.

    Attributes:
        noun: What its examples are called.
        examples: The examples.
    """

    noun: ClassVar[str]
    examples: Examples[E]

    @property
    def train(self) -> Sequence[E]:
        """Examples to train on."""
        return self.examples.train

    @property
    def dev(self) -> Sequence[E]:
        """Held-out examples to evaluate on; may be empty."""
        return self.examples.dev

    @property
    def notes(self) -> Sequence[str]:
        """What becomes of an adapter of a quantized base, the formats of the files, and what was left out of them."""
        config: Any = self.config
        return (*quantized_base.notes(self.model, config.method), *self.examples.notes)

    def summary(self) -> str:
        """One line on what would run."""
        card = self.model.plugin.card
        return (
            f"{card.name} with {card.count(self.model.dims):,} parameters from {self.model.folder}, "
            f"{len(self.train)} {self.noun} to train on, {len(self.dev)} held out, output in {self.output}"
        )


class Check(Protocol):
    """The checks of a command, before paddle is imported and anything is written."""

    def __call__(
        self, config: Any, family: str = "auto", families: Families | None = None, weights: bool = True
    ) -> CheckedJob[Any]:
        """The job of a configuration.

        Args:
            config: The configuration.
            family: Name of a family, or ``"auto"`` for the one that claims the model's architecture.
            families: The installed families, where the caller has loaded some already.
            weights: Whether the job needs the weights of its model; False neither downloads nor opens them.

        Raises:
            LlmctlError: The first check that fails; nothing has been written.
        """
