"""Zero padding: several documents in one row, each blind to the others.

A document brings the position of each token in it, and where each token stops being seen; both count from the document's
beginning. Which documents go together is decided from their lengths alone.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from llmctl.data.sft.encoding import IGNORED

D = TypeVar("D")


class Document(Protocol):
    """What can be packed: ids, shifted labels of the same length, and where it comes from.

    ``position_ids`` and ``ends`` may be given too; without them positions count from 0 and all tokens are seen to the end.
    """

    input_ids: Sequence[int]
    labels: Sequence[int]
    source: str


@dataclass(frozen=True)
class PackedRow:
    """Documents one after the other.

    Attributes:
        input_ids: Ids of all.
        labels: Labels of all.
        position_ids: Positions, which restart with each document.
        ends: For each token the column from which it is no longer seen.
        source: Where the documents come from.
        documents: How many they are.
    """

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    ends: list[int]
    source: str
    documents: int


def first_come(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of indices in the given order: a row ends where the next document does not fit."""
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
    """Rows of indices, longest documents first, each into the fullest row that has room (best-fit decreasing)."""
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
"""How documents are chosen for a row, by the value of ``data.packing``."""


def mixed(documents: Sequence[D], how: str, shuffle: bool, seed: int) -> Sequence[D]:
    """The documents in the order to pack them in: where it is kept and free, mixed, so that neighbours in a file part."""
    if not shuffle or how != "first-come":
        return documents
    return [documents[index] for index in np.random.default_rng(seed).permutation(len(documents))]


def filling(count: int, what: str, rows: Sequence[Any], capacity: int) -> str:
    """How full the rows are that so many documents were packed into, in one line."""
    filled = sum(len(row.input_ids) for row in rows) / (len(rows) * capacity)
    return f"packed: {count} {what} in {len(rows)} rows of {capacity} tokens, {filled:.1%} filled"


def pack(documents: Sequence[Document], capacity: int, how: str) -> list[PackedRow]:
    """All documents in rows of at most ``capacity`` tokens; a longer document has a row of its own."""
    lengths = [len(document.input_ids) for document in documents]
    return [join([documents[index] for index in row]) for row in PACKERS[how](lengths, capacity)]


def join(documents: Sequence[Document]) -> PackedRow:
    """The row of some documents."""
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    for document in documents:
        start, length = len(ids), len(document.input_ids)
        ids += document.input_ids
        # What follows a document's last token is another document: nothing may be asked of it.
        labels += [*document.labels[:-1], IGNORED]
        positions += getattr(document, "position_ids", range(length))
        ends += [start + end for end in getattr(document, "ends", [length] * length)]
    return PackedRow(ids, labels, positions, ends, ", ".join(d.source for d in documents), len(documents))


def collate(rows: Sequence[PackedRow], pad_id: int, multiple: int = 1) -> dict[str, NDArray[np.int64]]:
    """``input_ids``, ``labels``, ``position_ids``, ``document_end`` and ``attention_mask`` [B, T], padded on the right.

    Args:
        rows: B rows.
        pad_id: Fills ``input_ids``.
        multiple: T is the smallest multiple of this that holds the longest row.
    """
    width = -(-max(len(row.input_ids) for row in rows) // multiple) * multiple
    fills = {"input_ids": pad_id, "labels": IGNORED, "position_ids": 0, "document_end": 0, "attention_mask": 0}
    batch = {name: np.full((len(rows), width), fill, np.int64) for name, fill in fills.items()}
    for i, row in enumerate(rows):
        length = len(row.input_ids)
        values = row.input_ids, row.labels, row.position_ids, row.ends, 1
        for array, value in zip(batch.values(), values, strict=True):
            array[i, :length] = value
    return batch
