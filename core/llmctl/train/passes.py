"""The order of the forward and backward passes of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Passes(Protocol):
    """Runs the passes of a step on this rank, and leaves the sum of their gradients."""

    def run(
        self,
        count: int,
        hidden: Callable[[int], tuple[Any, ...]],
        loss: Callable[[int, tuple[Any, ...]], Any],
        done: Callable[[], object],
    ) -> None:
        """Runs all passes.

        Args:
            count: How many there are.
            hidden: Computes, for the pass of a number, what its layers give to the loss, as ``Task.hidden``.
            loss: Computes the scalar to differentiate from that; not called on ranks without the output head.
            done: Called after each backward pass.
        """


class InTurn:
    """One pass after another, each with all layers."""

    def run(
        self,
        count: int,
        hidden: Callable[[int], tuple[Any, ...]],
        loss: Callable[[int, tuple[Any, ...]], Any],
        done: Callable[[], object],
    ) -> None:
        """As ``Passes.run``."""
        for number in range(count):
            loss(number, hidden(number)).backward()
            done()


IN_TURN = InTurn()
