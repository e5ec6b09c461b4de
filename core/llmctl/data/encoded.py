"""Encodes all examples once: which are kept and how long they are. The rows are kept in memory, or made again when needed."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from llmctl.data.formats import Problems
from llmctl.data.lazy_rows import Identity, LazyRows, digest_of
from llmctl.errors import DataError, TokenizerError

R = TypeVar("R")


@dataclass(frozen=True)
class Coder(Generic[R]):
    """How examples become rows.

    Attributes:
        encode: Example -> row with ``truncated``, and ``dropped_turns`` if any can be dropped; None if it is dropped.
        length: Row -> its tokens.
        identity: Row -> integers that identify its content.
    """

    encode: Callable[[Any], R | None]
    length: Callable[[R], int]
    identity: Identity


@dataclass(frozen=True)
class Encoded(Generic[R]):
    """Encoded examples.

    Attributes:
        rows: The rows of those that are kept.
        kept: Index of the example of each row.
        examples: Number of examples.
        truncated: Number of rows that are truncated.
        shortened: Number of rows that lost their oldest turns.
    """

    rows: LazyRows[R]
    kept: NDArray[np.int64]
    examples: int
    truncated: int
    shortened: int

    @property
    def dropped(self) -> int:
        """Number of examples that are dropped."""
        return self.examples - len(self.kept)

    def parts(self, sizes: Sequence[int]) -> list[int]:
        """Number of rows of each part of the examples.

        Args:
            sizes: Number of examples of each part, one after another.
        """
        return [int(count) for count in np.diff(np.searchsorted(self.kept, np.cumsum([0, *sizes])))]


def encode(
    examples: Sequence[Any], coder: Coder[R], keep: bool = True, progress: Callable[[int], Any] | None = None
) -> Encoded[R]:
    """Encodes all examples.

    Args:
        examples: Examples with a ``source``.
        coder: How they become rows.
        keep: Whether rows stay in memory; else each is made again whenever it is asked for.
        progress: Called with 1 for each example.

    Raises:
        DataError: Names the rows that cannot be encoded, such as one with a token that has no row in the embedding.
    """
    problems, digest = Problems(), hashlib.sha256()
    kept, lengths = array("q"), array("q")
    rows: list[R] = []
    truncated = shortened = 0
    for index, example in enumerate(examples):
        try:
            row = coder.encode(example)
        except TokenizerError as error:
            problems.add(example.source, str(error))
            continue
        finally:
            if progress:
                progress(1)
        if row is None:
            continue
        kept.append(index)
        lengths.append(coder.length(row))
        truncated += row.truncated
        shortened += bool(getattr(row, "dropped_turns", 0))
        if keep:
            rows.append(row)
        else:
            digest.update(np.asarray(coder.identity(row), np.int64).tobytes())
    if problems:
        raise DataError(problems.message("examples cannot be encoded:"))
    found = np.array(kept, np.int64)
    made = (
        LazyRows(rows.__getitem__, lengths, lambda: digest_of(rows, coder.identity))
        if keep
        else made_again(examples, coder, found, np.array(lengths, np.int64), digest.hexdigest())
    )
    return Encoded(made, found, len(examples), truncated, shortened)


def made_again(
    examples: Sequence[Any], coder: Coder[R], kept: NDArray[np.int64], lengths: NDArray[np.int64], digest: str
) -> LazyRows[R]:
    """Rows that are encoded whenever they are asked for.

    Args:
        examples: All examples.
        coder: How they become rows.
        kept: Index of the example of each row.
        lengths: Tokens of each row, as they were before.
        digest: Hash of their content.
    """

    def make(index: int) -> R:
        example = examples[int(kept[index])]
        row = coder.encode(example)
        if row is None or coder.length(row) != lengths[index]:
            raise DataError(f"{example.source} is not what it was when the run began; start the run again")
        return row

    return LazyRows(make, lengths, lambda: digest)
