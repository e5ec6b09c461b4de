"""The training loop, neutral to the method: micro-batches, gradients, clipping, updates, evaluations, interruption.

What is trained on is a ``task``; what happens beside the updates (log lines, checkpoints, progress) are hooks. The
gradient of an update is that of the sum of all items' losses divided by the number of items of the whole update, so that
accumulation equals one big batch whatever the lengths.

Randomness is seeded anew from (seed, step) before each update. A run that continues at a step therefore draws the same
numbers as one that never stopped, and no generator state has to be stored.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from llmctl import runtime
from llmctl.errors import LlmctlError
from llmctl.train.optim.adamw import AdamW
from llmctl.train.optim.schedules import Schedule
from llmctl.train.task import Batch, Task

SETTLING, RELEASE_EVERY = 3, 16
"""Updates after which free memory goes back to the system: the first ones, which find their places, and now and then."""


@dataclass(frozen=True)
class Plan:
    """How long to train, and how often to evaluate and save, in updates."""

    steps: int
    eval_every: int
    save_every: int
    seed: int = 0


@dataclass(frozen=True)
class Update:
    """What one update did.

    Attributes:
        step: Its number, from 1.
        epoch: Passes over the data completed after it.
        loss: Mean loss of an item.
        lr: Learning rate.
        grad_norm: Global norm of the gradient before clipping; 0 of an update that was left out because it overflowed.
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


class Hook:
    """Something that happens beside the updates; every method may be left out.

    Attributes:
        stop: The hook asks to end training after the present step, which is saved.
    """

    stop = False

    def on_start(self, first: int, plan: Plan) -> None:
        """Before update number ``first``."""

    def on_gradients(self, step: int) -> None:
        """Before an update moves the weights; gradients are those it will use."""

    def on_update(self, update: Update) -> None:
        """After each update."""

    def on_evaluation(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        """After an evaluation; comes before ``on_save`` of the same step."""

    def on_save(self, step: int) -> None:
        """A checkpoint is due: by the plan, at the end, or because the user interrupts."""

    def on_end(self) -> None:
        """The loop is left, whether by its end or by an error."""


class NonFiniteError(LlmctlError):
    """The loss or gradient of an update is NaN or infinite; the weights are those before the update.

    Attributes:
        report: Step, loss, gradient norm, learning rate and the examples of the update.
    """

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report
        examples = ", ".join(report["examples"][:8]) + (", ..." if len(report["examples"]) > 8 else "")
        super().__init__(
            f"training stopped at step {report['step']}: loss {report['loss']}, gradient norm {report['grad_norm']}, "
            f"learning rate {report['lr']:.3g}; the step's examples: {examples}. The weights were not updated and earlier "
            "checkpoints are intact. Look at these examples, or lower train.learning_rate and continue with --resume"
        )


class Interrupted(SystemExit):
    """The user pressed Ctrl-C; the current step was finished and saved. Ends the process with status 130."""

    def __init__(self, step: int) -> None:
        super().__init__(130)
        self.step = step


class Loop:
    """Trains a model.

    Args:
        model: A layer.
        task: Batches, loss, evaluation.
        optimizer: Moves the weights.
        schedule: Update number -> learning rate.
        plan: How long, and how often what.
        hooks: Called in order at each occasion.
        evaluating: A context in which the model is evaluated.
        computing: A context in which losses and evaluations are computed.
    """

    def __init__(
        self,
        model: Any,
        task: Task,
        optimizer: AdamW,
        schedule: Schedule,
        plan: Plan,
        hooks: Sequence[Hook] = (),
        evaluating: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
        computing: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self.model, self.task, self.optimizer = model, task, optimizer
        self.schedule, self.plan, self.hooks = schedule, plan, hooks
        self.evaluating, self.computing = evaluating, computing

    def run(self, done: int = 0) -> int:
        """All updates after the first ``done``, or until a hook asks to stop; the number of the last one.

        Raises:
            NonFiniteError: A loss or gradient is not finite.
            Interrupted: Ctrl-C; a second one raises KeyboardInterrupt at once.
        """
        with _interruptible() as interrupted:
            try:
                self._each("on_start", done + 1, self.plan)
                while done < self.plan.steps and not self._stopped():
                    done += 1
                    self._step(done, interrupted)
            finally:
                self._each("on_end")
        return done

    def _step(self, step: int, interrupted: Callable[[], bool]) -> None:
        self._each("on_update", self.update(step))
        if step <= SETTLING or step % RELEASE_EVERY == 0:
            runtime.release_memory()
        last = step == self.plan.steps
        if last or step % self.plan.eval_every == 0:
            metrics = self.evaluate()
            if metrics:
                self._each("on_evaluation", step, step / self.task.steps_per_epoch, metrics)
        last = last or self._stopped()
        stop = interrupted() and not last
        if last or stop or step % self.plan.save_every == 0:
            self._each("on_save", step)
        if stop:
            raise Interrupted(step)

    def evaluate(self) -> dict[str, float]:
        """Metrics of the model as it is evaluated."""
        self.model.eval()
        with self.evaluating(), self.computing():
            return self.task.evaluate(self.model)

    def update(self, step: int) -> Update:
        """One update.

        Raises:
            NonFiniteError: The loss or gradient is not finite; the weights are unchanged.
        """
        start = time.perf_counter()
        runtime.seed(_seed_of(self.plan.seed, step))
        self.model.train()
        batches = self.task.micro_batches(step)
        total, items, sums = self._backward(batches)
        loss = total / items
        norm = self.optimizer.normalize(items)
        lr = self.schedule(step)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.optimizer.clear()
            if math.isfinite(loss) and self._may_skip():
                return self._done(step, start, batches, loss, lr, 0.0, {})
            examples = [source for batch in batches for source in batch.sources]
            report = {"step": step, "loss": str(loss), "grad_norm": str(norm), "lr": lr, "examples": examples}
            raise NonFiniteError(report)
        self._each("on_gradients", step)
        self.optimizer.step(lr)
        means = {name: value / items for name, value in sums.items()}
        return self._done(step, start, batches, loss, lr, norm, means)

    def _may_skip(self) -> bool:
        """Whether gradients that are not finite may be so because losses were multiplied by too much, which is mended."""
        scaling = self.optimizer.scaling
        return scaling is not None and scaling.overflowed()

    def _done(
        self,
        step: int,
        start: float,
        batches: Sequence[Batch],
        loss: float,
        lr: float,
        norm: float,
        means: Mapping[str, float],
    ) -> Update:
        scaling = self.optimizer.scaling
        skipped = {} if scaling is None else {"skipped_updates": float(scaling.skipped)}
        return Update(
            step=step,
            epoch=step / self.task.steps_per_epoch,
            loss=loss,
            lr=lr,
            grad_norm=norm,
            tokens=sum(batch.tokens for batch in batches),
            seconds=time.perf_counter() - start,
            means={**means, **skipped},
        )

    def _backward(self, batches: Sequence[Batch]) -> tuple[float, int, dict[str, float]]:
        """Gradients of the sum of all losses; that sum, the number of items, and the further sums."""
        losses = []
        for batch in batches:
            with self.computing():
                loss = self.task.loss(self.model, batch)
            factor = self.optimizer.loss_factor
            (loss.total if factor == 1.0 else loss.total * factor).backward()
            self.optimizer.gather()
            losses.append(loss._replace(total=loss.total.detach()))
        items = sum(loss.items for loss in losses)
        assert items > 0, "a step must hold at least one item with a loss"
        names = losses[0].sums
        sums = {name: sum(float(loss.sums[name]) for loss in losses) for name in names}
        return sum(float(loss.total) for loss in losses), items, sums

    def _stopped(self) -> bool:
        return any(hook.stop for hook in self.hooks)

    def _each(self, occasion: str, *values: Any) -> None:
        for hook in self.hooks:
            getattr(hook, occasion)(*values)


def _seed_of(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**31


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C sets a flag instead of raising; pressed again, it raises. Does nothing outside the main thread."""
    pressed: list[int] = []

    def handler(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    try:
        before = signal.signal(signal.SIGINT, handler)
    except ValueError:
        yield lambda: False
        return
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
