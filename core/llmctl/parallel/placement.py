"""Where each tensor of a state is: which stages hold it, how tensor ranks divide it, and who counts it in sums over all ranks.

The one table that saving, loading and clipping read. Nothing here imports paddle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.card.sharding import Split
from llmctl.checkpoint.shards import split, whole_shape
from llmctl.parallel.topology import DENSE, EXPERTS, Coordinates, Sharing, Topology

ONE = Topology()
"""The topology of a process that trains alone."""


@dataclass(frozen=True)
class Placement:
    """Where the tensors of a model are, as one rank sees it.

    Attributes:
        topology: The arrangement of the ranks.
        place: The coordinates of this rank.
        splits: How tensor ranks divide a tensor, by name; others are on all of them.
        stages: The stages that hold a tensor, by name; those of no name are on all stages of a model that is not divided.
        experts: Which one of the ranks that share experts holds a tensor, by name; others are on all of them.
    """

    topology: Topology = ONE
    place: Coordinates = field(default_factory=lambda: ONE.coordinates(0))
    splits: Mapping[str, Split] = field(default_factory=dict)
    stages: Mapping[str, Sequence[int]] = field(default_factory=dict)
    experts: Mapping[str, int] = field(default_factory=dict)

    @property
    def elsewhere(self) -> bool:
        """Whether other ranks have tensors that this one has nothing of: other layers or experts, or biases that only the first
        tensor rank adds."""
        return self.topology.pipeline * self.topology.expert > 1 or self.place.tensor > 0

    def sharing(self, name: str) -> Sharing:
        """The ranks with different rows that have a parameter."""
        return EXPERTS if name in self.experts else DENSE

    def alike(self, names: Iterable[str]) -> dict[Sharing, list[str]]:
        """Names of parameters by the ranks that share them; the same keys in the same order on all ranks."""
        names = list(names)
        kinds = (DENSE, EXPERTS) if self.topology.expert > 1 else (DENSE,)
        return {kind: [name for name in names if self.sharing(name) == kind] for kind in kinds}

    def owner(self, name: str) -> int:
        """The stage that saves a tensor and counts it: the first that holds it."""
        return min(self.stages.get(name, (0,)))

    def whole_shape(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of a whole tensor, from that of this rank's part."""
        rule = self.splits.get(name)
        return tuple(shape) if rule is None else whole_shape(shape, rule)

    def part(self, name: str, whole: NDArray[Any]) -> NDArray[Any]:
        """This rank's part of a whole tensor."""
        rule = self.splits.get(name)
        return whole if rule is None else split(whole, rule, self.place.tensor, self.topology.tensor)

    def counted(self, name: str, shape: Sequence[int]) -> bool | NDArray[np.bool_]:
        """Whether this rank counts its part of a tensor in a sum over all ranks, which has every element once.

        Of the ranks with the same slice the first counts; those with other slices count theirs.

        Args:
            name: Of a tensor that this rank has.
            shape: Of this rank's part.

        Returns:
            Whether it counts the part; or, where it counts some of it, whether each element, [1, ..., length of the divided axis,
            ..., 1].
        """
        rank = self.topology.rank(self.place)
        if self.topology.peers(self.sharing(name).copies, rank)[0] != rank or self.place.pipeline != self.owner(name):
            return False
        rule = self.splits.get(name)
        if rule is None:
            return self.place.tensor == 0
        flags = [self.place.tensor % segment.replicas == 0 for segment in rule.segments]
        if len(set(flags)) == 1:
            return flags[0]
        lengths = [segment.outer * segment.count * segment.inner for segment in rule.segments]
        own = split(np.repeat(flags, lengths), replace(rule, axis=0), self.place.tensor, self.topology.tensor)
        return own.reshape([-1 if axis == rule.axis else 1 for axis in range(len(shape))])


WHOLE = Placement()
"""Everything is on one rank."""
