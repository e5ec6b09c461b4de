"""What training asks of its ranks, and the answer of a process that trains alone. Nothing here imports paddle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from llmctl.parallel.axis import Axis
from llmctl.parallel.rank import Rank
from llmctl.parallel.topology import Coordinates, Topology

T = TypeVar("T")


class Ranks(Protocol):
    """The processes that train together. All of them call the same methods in the same order.

    Attributes:
        rank: Which one of them this process is.
        number: The number of this process among those with different rows, from 0.
        size: How many of these there are.
    """

    @property
    def rank(self) -> Rank:
        """Which one of them this process is."""

    @property
    def topology(self) -> Topology:
        """How they are arranged."""

    @property
    def place(self) -> Coordinates:
        """Where this process is among them."""

    @property
    def number(self) -> int:
        """The number of this process among those with different rows, from 0."""

    @property
    def size(self) -> int:
        """How many of these there are."""

    @property
    def tensor(self) -> Axis:
        """The ranks that share each layer."""

    @property
    def pipeline(self) -> Axis:
        """The stages of one copy of the model."""

    @property
    def hybrid(self) -> Any:
        """Paddle's ``HybridCommunicateGroup``, which its pipelines ask for."""

    def axis(self, name: str) -> Axis:
        """One of the axes of ``Topology.peers``; the first call for a name must be made by all ranks, in the same order."""

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which prints and writes."""

    @property
    def evaluates(self) -> bool:
        """Whether this rank evaluates: it is rank 0, or has other parts of its copy of the model."""

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks with different rows, in float64."""

    def sum_all(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks, in float64."""

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether any rank has set it."""

    def sum_grads(self, parameters: Iterable[Any], over: str = "data") -> None:
        """Replaces gradients by their sums over the ranks of an axis that hold the same; one that none has stays absent."""

    def lead(self, work: Callable[[], object]) -> None:
        """Does the work on rank 0, however long that takes, while the others answer what it asks for."""

    def all_gather_object(self, value: T) -> list[T]:
        """The values of all ranks, of types that JSON has."""

    def barrier(self) -> None:
        """Returns when all ranks have come here, however long that takes."""

    def broadcast_object(self, value: T) -> T:
        """The value of rank 0, of types that JSON has; what others pass is ignored. Waits like ``barrier``."""

    def close(self) -> None:
        """Waits for all ranks for the last time."""

    def check_equal(self, sums: Iterable[float]) -> None:
        """Raises if the ranks' values of these sums of weights differ."""


class Alone:
    """One process, with nothing to wait for or to sum."""

    topology, place = Topology(), Coordinates(0, 0, 0, 0)
    rank, number, size, main, evaluates = Rank(0, 1), 0, 1, True, True
    tensor, pipeline, hybrid = Axis("tensor", 0, 1), Axis("pipeline", 0, 1), None

    def axis(self, name: str) -> Axis:
        """This process alone."""
        return Axis(name, 0, 1)

    def total(self, values: Sequence[float]) -> list[float]:
        """The values."""
        return list(values)

    def sum_all(self, values: Sequence[float]) -> list[float]:
        """The values."""
        return list(values)

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """The flags."""
        return list(flags)

    def sum_grads(self, parameters: Iterable[Any], over: str = "data") -> None:
        """Nothing."""

    def lead(self, work: Callable[[], object]) -> None:
        """Does the work."""
        work()

    def all_gather_object(self, value: T) -> list[T]:
        """The value."""
        return [value]

    def barrier(self) -> None:
        """Nothing."""

    def broadcast_object(self, value: T) -> T:
        """The value."""
        return value

    def close(self) -> None:
        """Nothing."""

    def check_equal(self, sums: Iterable[float]) -> None:
        """Nothing."""


ALONE = Alone()
