"""How the ranks are arranged: along which axes they share the work, and who shares what with whom. Nothing here imports paddle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

AXES = ("pipeline", "data", "sharding", "tensor")
"""The axes, from the outermost: ranks of the last one are neighbours, on the fastest connection."""


class Coordinates(NamedTuple):
    """Where a rank is on each axis, from 0."""

    pipeline: int
    data: int
    sharding: int
    tensor: int


@dataclass(frozen=True)
class Topology:
    """The ranks as a box with one axis for each way of sharing the work.

    Attributes:
        data: How many copies of the model train on different rows.
        tensor: How many ranks share each layer.
        pipeline: How many stages the layers are divided into.
        sharding: How many ranks, with different rows too, share the state of the optimizer, the gradients or the weights.
        expert: How many ranks share the experts of a mixture: neighbours among those with different rows, so that they are inside
            of a sharding group if their number divides it, and several whole sharding groups if it is a multiple.

    Raises:
        ValueError: A degree is below 1, or ``expert`` does not divide ``data`` x ``sharding``.
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    sharding: int = 1
    expert: int = 1

    def __post_init__(self) -> None:
        for name, degree in vars(self).items():
            if degree < 1:
                raise ValueError(f"{name} must be 1 or more, not {degree}")
        if self.batch % self.expert:
            raise ValueError(f"expert={self.expert} does not divide the {self.batch} ranks of data x sharding")

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return math.prod(self._degrees())

    @property
    def batch(self) -> int:
        """How many ranks, or groups of ranks, train on different rows: ``data`` x ``sharding``."""
        return self.data * self.sharding

    @property
    def block(self) -> int:
        """How many neighbours with different rows have everything: whole groups of sharding, and whole groups of experts."""
        return math.lcm(self.sharding, self.expert)

    @property
    def expert_sharding(self) -> int:
        """How many ranks of a block hold the same experts, and share what ``sharding`` ranks share of all else."""
        return self.block // self.expert

    @property
    def expert_data(self) -> int:
        """How many blocks there are: ranks that hold the same of the same experts."""
        return self.batch // self.block

    def coordinates(self, rank: int) -> Coordinates:
        """Where a rank is.

        Raises:
            ValueError: There is no such rank.
        """
        if not 0 <= rank < self.size:
            raise ValueError(f"there is no rank {rank} among {self.size}")
        places = []
        for degree in reversed(self._degrees()):
            rank, place = divmod(rank, degree)
            places.append(place)
        return Coordinates(*reversed(places))

    def rank(self, coordinates: Coordinates) -> int:
        """The rank at a place.

        Raises:
            ValueError: There is no such place.
        """
        rank = 0
        for name, place, degree in zip(AXES, coordinates, self._degrees(), strict=True):
            if not 0 <= place < degree:
                raise ValueError(f"there is no place {place} among the {degree} of {name}")
            rank = rank * degree + place
        return rank

    def batch_number(self, rank: int) -> int:
        """The number of a rank among those with different rows, from 0."""
        here = self.coordinates(rank)
        return here.data * self.sharding + here.sharding

    def peers(self, axis: str, rank: int) -> tuple[int, ...]:
        """The ranks that a rank shares with along an axis, itself among them, in the order of their places.

        Args:
            axis: One of ``AXES``; or ``batch``, over data and sharding; or ``block``, those of them that have everything together;
                or ``expert``, those that share a set of experts; or ``expert_sharding`` and ``expert_data``, which are to experts what
                sharding and data are to all else; or ``ends``, the first and the last stage of a pipeline; a stage between them
                is alone.
            rank: The rank.

        Raises:
            ValueError: There is no such rank or axis.
        """
        here = self.coordinates(rank)
        if axis in AXES:
            places = range(getattr(self, axis))
            return tuple(self.rank(here._replace(**{axis: place})) for place in places)
        if axis == "ends":
            ends = sorted({0, self.pipeline - 1})
            return (
                tuple(self.rank(here._replace(pipeline=stage)) for stage in ends) if here.pipeline in ends else (rank,)
            )
        number = self.batch_number(rank)
        group, block = number - number % self.expert, number - number % self.block
        numbers = {
            "batch": range(self.batch),
            "block": range(block, block + self.block),
            "expert": range(group, group + self.expert),
            "expert_sharding": range(block + number % self.expert, block + self.block, self.expert),
            "expert_data": range(number % self.block, self.batch, self.block),
        }
        if axis not in numbers:
            raise ValueError(f"there is no axis {axis}; there are {', '.join((*AXES, *numbers))} and ends")
        places = (divmod(one, self.sharding) for one in numbers[axis])
        return tuple(self.rank(here._replace(data=data, sharding=sharding)) for data, sharding in places)

    def groups(self, axis: str) -> list[tuple[int, ...]]:
        """All groups of ranks along an axis, by their first rank."""
        found: dict[int, tuple[int, ...]] = {}
        for rank in range(self.size):
            if rank not in found:
                peers = self.peers(axis, rank)
                found.update(dict.fromkeys(peers, peers))
        return list(dict.fromkeys(found.values()))

    def _degrees(self) -> tuple[int, ...]:
        return tuple(getattr(self, name) for name in AXES)


class Sharing(NamedTuple):
    """Which ranks with different rows have the same parameter, as axes of ``Topology.peers``.

    Attributes:
        slices: The ranks that hold, or update, a slice of it each.
        copies: The ranks with the same slice.
    """

    slices: str
    copies: str


DENSE, EXPERTS = Sharing("sharding", "data"), Sharing("expert_sharding", "expert_data")
"""The ranks that share a parameter of all of them, and one of experts that are divided among them."""
