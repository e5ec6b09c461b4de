"""What one of the ranks that compute a model chooses, such as the next tokens of an answer, on all of them.

Ranks with the same logits, or with their own parts of the same sums, may round them differently. If each of them chose, they could
go on with other tokens, and wait for each other in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from llmctl.parallel.axis import Axis
from llmctl.parallel.collectives import broadcast_array


class Agreement:
    """One rank chooses for all that compute a model together: on the last stage, the first of those that have it.

    Args:
        alike: The axes of the ranks of a stage, which compute the same logits.
        pipeline: The stages.
    """

    def __init__(self, alike: Iterable[Axis], pipeline: Axis) -> None:
        self._axes = [*((axis, 0) for axis in alike), (pipeline, pipeline.size - 1)]

    def chosen(self, choose: Callable[[], np.ndarray]) -> np.ndarray:
        """What one rank chooses. All of them call this.

        Args:
            choose: Called on that rank only.
        """
        found = choose() if all(axis.rank == source for axis, source in self._axes) else None
        for number, (axis, source) in enumerate(self._axes, 1):
            # Only ranks that pass it on, or the one that has it, get it before the last axis.
            if all(later.rank == place for later, place in self._axes[number:]):
                found = broadcast_array(found, axis, source)
        assert found is not None
        return found
