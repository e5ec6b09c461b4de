"""Callbacks: what happens besides the optimizer steps of a run. Nothing here imports paddle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LoopSettings:
    """How long to train, and how often to evaluate and save, in steps."""

    max_steps: int
    eval_every: int
    save_every: int
    seed: int = 0


@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer step did.

    Attributes:
        step: Its number, from 1.
        epoch: Passes over the data completed after it.
        loss: Mean loss of an item: a label token, or a pair.
        lr: Learning rate.
        grad_norm: Global norm of the gradient before clipping; 0 for a step that was skipped because it overflowed.
        tokens: Tokens that went through the model, without padding.
        seconds: Time it took.
        means: Further means over items, by name.
    """

    step: int
    epoch: float
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    seconds: float
    means: Mapping[str, float] = field(default_factory=dict)


class Callback:
    """Base class of callbacks; override the events that you need. An exception in one ends the run.

    Attributes:
        stop: Set it to end training after the current step, which is saved.
    """

    stop = False

    def on_train_begin(self, first_step: int, settings: LoopSettings) -> None:
        """Before the first step, whose number is above 1 where a run is resumed."""

    def on_pre_optimizer_step(self, step: int) -> None:
        """Before an optimizer step, when the gradients are accumulated and clipped."""

    def on_step_end(self, metrics: StepMetrics) -> None:
        """After each optimizer step."""

    def on_evaluate_begin(self, step: int) -> None:
        """Before an evaluation."""

    def on_evaluate(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        """After an evaluation; comes before ``on_save`` of the same step."""

    def on_save(self, step: int) -> None:
        """When a checkpoint is due: at the interval, at the end, or because the user interrupts."""

    def on_train_end(self) -> None:
        """When the loop ends, whether all steps are done or by an error."""
