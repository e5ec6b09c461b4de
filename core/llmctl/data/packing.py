"""Packing: several documents in one row, without attention between them.

A document may give a position to each of its tokens, and the position at which later tokens stop attending to it; both
count from the start of the document. Which documents share a row follows from their lengths alone.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmctl.data.lazy_rows import LazyRows
from llmctl.data.sft.encoding import IGNORE_INDEX, identity


class Packable(Protocol):
    """A document to pack: token ids, shifted labels of the same length, and the source (``file:line``).

    It may also have ``position_ids`` and ``ends`` (see ``PackedRow``); by default positions count from 0, and all tokens
    are attended to until the end of the document.
    """

    input_ids: Sequence[int]
    labels: Sequence[int]
    source: str


@dataclass(frozen=True)
class PackedRow:
    """Several documents, concatenated.

    Attributes:
        input_ids: Token ids.
        labels: Shifted labels.
        position_ids: Positions, restarting with each document.
        ends: For each token, the first column of the row that does not attend to it.
        source: Sources of the documents.
        documents: Number of documents.
    """

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    ends: list[int]
    source: str
    documents: int


def first_come(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of the documents in each row, in the given order; a new row starts when a document does not fit."""
    rows: list[list[int]] = []
    room = 0
    for index, length in enumerate(lengths):
        if not rows or length > room:
            rows.append([])
            room = capacity
        rows[-1].append(index)
        room -= length
    return rows


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of the documents in each row by best-fit decreasing: longest first, each into the fullest row with room."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []
    for index in order:
        length = lengths[index]
        at = bisect.bisect_left(free, (length, -1))
        room, row = free.pop(at) if at < len(free) else (capacity, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        bisect.insort(free, (room - length, row))
    return rows


PACKERS: Mapping[str, Callable[[Sequence[int], int], list[list[int]]]] = {
    "first-come": first_come,
    "best-fit": best_fit,
}
"""Value of ``data.packing`` -> algorithm."""


@dataclass(frozen=True)
class Layout:
    """Which documents are in which row.

    Attributes:
        rows: Indices of the documents of each row.
        parts: Number of rows of each part.
    """

    rows: Sequence[Sequence[int]]
    parts: Sequence[int]

    @property
    def digest(self) -> str:
        """Hash of the layout."""
        return hashlib.sha256(repr([list(map(int, row)) for row in self.rows]).encode()).hexdigest()


def layout(
    lengths: Sequence[int], capacity: int, how: str, parts: Sequence[int] | None = None, seed: int | None = None
) -> Layout:
    """Decides which documents share a row, from their lengths alone.

    Args:
        lengths: Tokens of each document.
        capacity: Tokens that fit into a row; a longer document gets a row of its own.
        how: ``none``, or a key of ``PACKERS``.
        parts: Number of documents of each part, one after another, whose rows have no documents of others; None = one part.
        seed: Seed of the order in which ``first-come`` takes documents; None = as given.
    """
    rows: list[Sequence[int]] = []
    sizes, start = [], 0
    for number, count in enumerate([len(lengths)] if parts is None else parts):
        order = np.arange(start, start + count)
        if seed is not None and how == "first-come":
            order = order[np.random.default_rng([seed, number] if number else seed).permutation(count)]
        chosen = [[i] for i in range(count)] if how == "none" else PACKERS[how]([lengths[i] for i in order], capacity)
        rows += [[int(order[index]) for index in row] for row in chosen]
        sizes.append(len(chosen))
        start += count
    return Layout(rows, sizes)


def fill_summary(count: int, what: str, rows: LazyRows[Any], capacity: int) -> str:
    """A line on how full the rows are.

    Args:
        count: Number of documents.
        what: Their name in the plural.
        rows: The packed rows.
        capacity: Tokens that fit into a row.
    """
    filled = int(rows.lengths.sum()) / (len(rows) * capacity)
    return f"packed: {count} {what} in {len(rows)} rows of {capacity} tokens, {filled:.1%} filled"


def packed(documents: LazyRows[Any], placed: Layout) -> LazyRows[PackedRow]:
    """The rows of a layout; each is concatenated when it is asked for."""
    return LazyRows(
        lambda index: join([documents[number] for number in placed.rows[index]]),
        [int(documents.lengths[list(row)].sum()) for row in placed.rows],
        lambda: documents.digest + placed.digest,
    )


def pack(documents: Sequence[Packable], capacity: int, how: str) -> LazyRows[PackedRow]:
    """Packs all documents into rows of at most ``capacity`` tokens; a longer document gets a row of its own."""
    found = LazyRows.of(documents, identity)
    return packed(found, layout([int(length) for length in found.lengths], capacity, how))


def join(documents: Sequence[Packable]) -> PackedRow:
    """Concatenates documents into a row."""
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    for document in documents:
        start, length = len(ids), len(document.input_ids)
        ids += document.input_ids
        # The last token of a document must not predict the first one of the next document.
        labels += [*document.labels[:-1], IGNORE_INDEX]
        positions += getattr(document, "position_ids", range(length))
        ends += [start + end for end in getattr(document, "ends", [length] * length)]
    return PackedRow(ids, labels, positions, ends, ", ".join(d.source for d in documents), len(documents))


def collate(rows: Sequence[PackedRow], pad_id: int, multiple: int = 1) -> dict[str, NDArray[np.int64]]:
    """``input_ids``, ``labels``, ``position_ids``, ``document_end`` and ``attention_mask`` [B, T], padded on the right.

    Args:
        rows: The B rows.
        pad_id: Padding token of ``input_ids``.
        multiple: T is rounded up to a multiple of this.
    """
    width = -(-max(len(row.input_ids) for row in rows) // multiple) * multiple
    fills = {"input_ids": pad_id, "labels": IGNORE_INDEX, "position_ids": 0, "document_end": 0, "attention_mask": 0}
    batch = {name: np.full((len(rows), width), fill, np.int64) for name, fill in fills.items()}
    for i, row in enumerate(rows):
        length = len(row.input_ids)
        values = row.input_ids, row.labels, row.position_ids, row.ends, 1
        for array, value in zip(batch.values(), values, strict=True):
            array[i, :length] = value
    return batch
