"""The training loop, independent of the method: micro-batches, gradients, clipping, optimizer steps, evaluations.

What is trained on is a ``task``; log lines, checkpoints and progress are callbacks. The gradient of a step is that of the
sum of all items' losses divided by the number of items of the whole step, so that gradient accumulation equals one large
batch whatever the lengths.

The random generators are seeded from (seed, step, number of the pass, stage of a pipeline) before each forward pass: a resumed
run draws the same numbers as one that was not interrupted, whichever rank has the pass, and no generator state is stored.

Several ranks share the forward passes of a step; their gradients, losses and items are summed. The ranks of one copy of the
model evaluate, and what one or a signal decides is agreed on, so that all ranks do the same steps.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from llmctl import runtime
from llmctl.errors import LlmctlError
from llmctl.parallel.ranks import ALONE, Ranks
from llmctl.runtime.signals import SIGNALS
from llmctl.train.callbacks.base import Callback, LoopSettings, StepMetrics
from llmctl.train.interrupt import Interrupted, ends_later
from llmctl.train.optim.adamw import AdamW
from llmctl.train.optim.schedules import Schedule
from llmctl.train.passes import IN_TURN, Passes
from llmctl.train.task import Batch, Loss, Task

WARMUP_STEPS, RELEASE_EVERY = 3, 16
"""Freed memory is returned to the OS after each of the first steps (allocator warm-up), then every 16 steps."""


class NonFiniteError(LlmctlError):
    """The loss or gradient of a step is NaN or infinite; the weights are those before the step.

    Attributes:
        report: Step, loss, gradient norm, learning rate and the examples of the step.
    """

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report
        examples = ", ".join(report["examples"][:8]) + (", ..." if len(report["examples"]) > 8 else "")
        super().__init__(
            f"training stopped at step {report['step']}: loss {report['loss']}, gradient norm {report['grad_norm']}, "
            f"learning rate {report['lr']:.3g}; the step's examples: {examples}. The weights were not updated and earlier "
            "checkpoints are intact. Look at these examples, or lower train.learning_rate and continue with --resume"
        )


class Loop:
    """Trains a model.

    Args:
        model: A layer.
        task: Batches, loss, evaluation.
        optimizer: Updates the weights.
        schedule: Step -> learning rate.
        settings: How many steps, and how often to evaluate and save.
        callbacks: Called in order at each event.
        evaluating: Returns a context manager for evaluations, such as EMA weights.
        autocast: Returns a context manager for losses and evaluations.
        ranks: The processes that train together.
        passes: Runs the forward and backward passes of a step.
    """

    def __init__(
        self,
        model: Any,
        task: Task,
        optimizer: AdamW,
        schedule: Schedule,
        settings: LoopSettings,
        callbacks: Sequence[Callback] = (),
        evaluating: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
        autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
        ranks: Ranks = ALONE,
        passes: Passes = IN_TURN,
    ) -> None:
        self.model, self.task, self.optimizer = model, task, optimizer
        self.schedule, self.settings, self.callbacks = schedule, settings, callbacks
        self.evaluating, self.autocast, self.ranks, self.passes = evaluating, autocast, ranks, passes

    def run(self, done: int = 0) -> int:
        """Runs the steps after step ``done``, until ``max_steps`` or a callback's ``stop``; returns the number of the last step.

        Raises:
            NonFiniteError: A loss or gradient is not finite.
            Interrupted: A signal such as Ctrl-C in the main thread, once the current step is saved; a second signal raises at once.
        """
        with ends_later(connected=self.ranks.rank.size > 1) as signal:
            try:
                self._call("on_train_begin", done + 1, self.settings)
                stopped = self._agreed()[0]
                while done < self.settings.max_steps and not stopped:
                    done += 1
                    stopped = self._step(done, signal)
            finally:
                self._call("on_train_end")
        return done

    def _step(self, step: int, signal: Callable[[], int]) -> bool:
        """One step with all that follows it; returns whether a callback wants no further ones."""
        self._call("on_step_end", self.train_step(step))
        if step <= WARMUP_STEPS or step % RELEASE_EVERY == 0:
            runtime.release_memory()
        last = step == self.settings.max_steps
        if last or step % self.settings.eval_every == 0:
            self._evaluate(step)
        stopped, got = self._agreed(signal())
        last = last or stopped
        if last or got or step % self.settings.save_every == 0:
            self.ranks.lead(lambda: self._call("on_save", step))
            stopped = self._agreed()[0]
        if got and not last:
            raise Interrupted(got, step)
        return stopped

    def _evaluate(self, step: int) -> None:
        self._call("on_evaluate_begin", step)
        metrics = self.evaluate()
        epoch = step / self.task.steps_per_epoch
        self.ranks.lead(lambda: metrics and self._call("on_evaluate", step, epoch, metrics))

    def evaluate(self) -> dict[str, float]:
        """Metrics of the model in evaluation mode; none on ranks that do not evaluate."""
        self.model.eval()
        with self.evaluating(), self.autocast():
            return self.task.evaluate(self.model) if self.ranks.evaluates else {}

    def train_step(self, step: int) -> StepMetrics:
        """Forward and backward passes of one step, and its optimizer step.

        Raises:
            NonFiniteError: The loss or gradient is not finite; the weights are unchanged.
        """
        start = time.perf_counter()
        self.model.train()
        batches = self.task.micro_batches(step)
        total, items, sums = self._backward(step, batches)
        loss = total / items
        norm = self.optimizer.clip_grads(items)
        lr = self.schedule(step)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.optimizer.clear_grads()
            if math.isfinite(loss) and self._may_skip():
                return self._metrics(step, start, batches, loss, lr, 0.0, {})
            examples = [source for batch in batches for source in batch.sources]
            report = {"step": step, "loss": str(loss), "grad_norm": str(norm), "lr": lr, "examples": examples}
            raise NonFiniteError(report)
        self._call("on_pre_optimizer_step", step)
        self.optimizer.step(lr)
        means = {name: value / items for name, value in sums.items()}
        return self._metrics(step, start, batches, loss, lr, norm, means)

    def _may_skip(self) -> bool:
        """Whether the gradients may have overflowed because of the loss scale; if so, lowers the scale."""
        scaler = self.optimizer.scaler
        return scaler is not None and scaler.overflowed()

    def _metrics(
        self,
        step: int,
        start: float,
        batches: Sequence[Batch],
        loss: float,
        lr: float,
        norm: float,
        means: Mapping[str, float],
    ) -> StepMetrics:
        scaler = self.optimizer.scaler
        skipped = {} if scaler is None else {"skipped_updates": float(scaler.skipped)}
        return StepMetrics(
            step=step,
            epoch=step / self.task.steps_per_epoch,
            loss=loss,
            lr=lr,
            grad_norm=norm,
            tokens=sum(batch.tokens for batch in batches),
            seconds=time.perf_counter() - start,
            means={**means, **skipped},
        )

    def _backward(self, step: int, batches: Sequence[Batch]) -> tuple[float, float, dict[str, float]]:
        """Computes the gradients of the sum of all losses; returns that sum, the number of items, and the other sums."""
        own_numbers = own_passes(len(batches), self.ranks.number, self.ranks.size)
        losses: list[tuple[float, Loss]] = []

        def hidden(index: int) -> tuple[Any, ...]:
            number, _ = own_numbers[index]
            runtime.seed(_seed_of(self.settings.seed, step, number, self.ranks.pipeline.rank))
            with self.autocast():
                return self.task.hidden(self.model, batches[number])

        def loss(index: int, hidden: tuple[Any, ...]) -> Any:
            number, weight = own_numbers[index]
            with self.autocast():
                found = self.task.loss(self.model, batches[number], hidden)
            losses.append((weight, found._replace(total=found.total.detach())))
            scale = self.optimizer.loss_scale * weight
            return found.total if scale == 1.0 else found.total * scale

        self.passes.run(len(own_numbers), hidden, loss, self.optimizer.accumulate_grads)
        names = self.task.reported
        own = [
            sum(weight * float(loss.total) for weight, loss in losses),
            sum(weight * loss.items for weight, loss in losses),
            *(sum(weight * float(loss.sums[name]) for weight, loss in losses) for name in names),
        ]
        total, items, *sums = self.ranks.total(own)
        assert items > 0, "a step must hold at least one item with a loss"
        self.optimizer.sum_grads()
        return total, items, dict(zip(names, sums, strict=True))

    def _agreed(self, signal: int = 0) -> tuple[bool, int]:
        """Whether a callback of any rank wants to stop, and the signal that any rank got; 0 = none."""
        stop = any(callback.stop for callback in self.callbacks)
        stopped, *got = self.ranks.any([stop, *(signal == one for one in SIGNALS)])
        return stopped, next((int(one) for one, found in zip(SIGNALS, got, strict=True) if found), 0)

    def _call(self, event: str, *values: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(*values)


def own_passes(count: int, rank: int, size: int) -> list[tuple[int, float]]:
    """The forward passes of a rank, as (number, weight): every ``size``-th one.

    All ranks have as many, since they wait for each other inside of passes too: where none is left, one is repeated without
    weight.

    Args:
        count: Passes of the step.
        rank: The rank.
        size: Number of ranks.
    """
    numbers = range(rank, math.ceil(count / size) * size, size)
    return [(number, 1.0) if number < count else (number % count, 0.0) for number in numbers]


def _seed_of(seed: int, step: int, number: int, stage: int) -> int:
    return (seed * 1_000_003 + step + number * 7_368_787 + stage * 104_395_301) % 2**31
