"""Rows that are encoded on access; their lengths are known in advance."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

R = TypeVar("R")
Identity = Callable[[Any], Sequence[int]]
"""A row -> integers that identify its content."""


class LazyRows(Sequence[R], Generic[R]):
    """A sequence whose items are made at each access.

    Args:
        make: Index -> row.
        lengths: Tokens of each row [N].
        digest: Returns a hash of the content of all rows.
    """

    def __init__(self, make: Callable[[int], R], lengths: ArrayLike, digest: Callable[[], str]) -> None:
        self._make, self._digest = make, digest
        self.lengths: NDArray[np.int64] = np.asarray(lengths, np.int64)

    @classmethod
    def of(cls, rows: Sequence[R], identity: Identity) -> LazyRows[R]:
        """The rows of a sequence, each with ``input_ids``."""
        if isinstance(rows, LazyRows):
            return rows
        return cls(rows.__getitem__, [len(row.input_ids) for row in rows], lambda: digest_of(rows, identity))

    @cached_property
    def digest(self) -> str:
        """Hash of the content of all rows."""
        return self._digest()

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> list[R]: ...
    def __getitem__(self, index: int | slice) -> R | list[R]:
        if isinstance(index, slice):
            return [self._make(at) for at in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._make(int(index) % len(self))

    def __iter__(self) -> Iterator[R]:
        return map(self._make, range(len(self)))


def digest_of(rows: Iterable[Any], identity: Identity) -> str:
    """Hash of the content of rows."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.asarray(identity(row), np.int64).tobytes())
    return digest.hexdigest()


def by_length(rows: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Rows in groups of a size, sorted by length for less padding."""
    lengths = rows.lengths if isinstance(rows, LazyRows) else [len(row.input_ids) for row in rows]
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), size):
        yield [rows[int(index)] for index in order[start : start + size]]
