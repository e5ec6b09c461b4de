"""The order of rows in an epoch: all of them once, or a mixture of several files by weight.

With weights, an epoch has as many rows as all files together, of each file its share. A file gives its rows in random order, all
of them once before any of them again, so a small file with a large weight is repeated evenly and a large one with a small
weight is used up over several epochs. Everything follows from seed and epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.errors import ConfigError

Order = NDArray[np.int64]


@dataclass(frozen=True)
class Mixture:
    """Rows of several files, one file after another.

    Attributes:
        sizes: Rows of each file.
        weights: Weight of each file; empty = every row once in each epoch.
    """

    sizes: Sequence[int]
    weights: Sequence[float] = ()

    @property
    def counts(self) -> list[int]:
        """Rows of each file in an epoch: its share of all rows, by largest remainder."""
        if not self.weights:
            return list(self.sizes)
        total = sum(self.sizes)
        shares = np.asarray(self.weights, np.float64) * (total / sum(self.weights))
        counts = np.floor(shares).astype(np.int64)
        left = np.argsort(counts - shares, kind="stable")[: total - int(counts.sum())]
        counts[left] += 1
        return [int(count) for count in counts]

    def check(self, names: Sequence[str]) -> None:
        """Checks that there are rows of every file, and an epoch has some of each.

        Args:
            names: What the files are called.

        Raises:
            ConfigError: A file has none, or its share is too small.
        """
        unused = next((name for name, size in zip(names, self.sizes, strict=True) if not size), None)
        if unused is not None:
            raise ConfigError(
                f"no example of {unused} is left to train on, as all are held out or dropped; leave it out of data.train and "
                "data.weights"
            )
        empty = next((name for name, count in zip(names, self.counts, strict=True) if not count), None)
        if empty is not None:
            raise ConfigError(
                f"data.weights gives {empty} none of the {sum(self.sizes)} rows of an epoch; raise its weight, or leave it out"
            )

    def epoch(self, number: int, seed: int, shuffle: bool) -> Order:
        """Indices of the rows of an epoch, in order.

        Args:
            number: The epoch, from 0.
            seed: Seed of the order.
            shuffle: Whether rows are in random order; else those of a file keep theirs, and files take turns evenly.
        """
        random = np.random.default_rng([seed, number])
        if not self.weights:
            count = sum(self.sizes)
            return random.permutation(count) if shuffle else np.arange(count)
        counts = self.counts
        starts = np.cumsum([0, *self.sizes])
        chosen = np.concatenate(
            [
                start + _next_rows(size, number * count, count, [seed, part] if shuffle else None)
                for part, (start, size, count) in enumerate(zip(starts, self.sizes, counts, strict=False))
            ]
        )
        if shuffle:
            return random.permutation(chosen)
        return chosen[np.argsort(np.concatenate([(np.arange(count) + 0.5) / count for count in counts]), kind="stable")]


def _next_rows(size: int, first: int, count: int, seed: Sequence[int] | None) -> Order:
    """``count`` rows of a file from the ``first`` on that it gives, over as many passes as needed."""
    found: list[Order] = [np.arange(0)]
    while count:
        number, at = divmod(first, size)
        rows = np.arange(size) if seed is None else np.random.default_rng([*seed, number, 1]).permutation(size)
        found.append(rows[at : at + count])
        first, count = first + len(found[-1]), count - len(found[-1])
    return np.concatenate(found)
