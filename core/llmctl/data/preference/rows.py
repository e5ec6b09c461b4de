"""Lays out preference pairs in rows: the prompt once, then both answers, without attention between the answers.

Positions of the rejected answer continue from the end of the prompt. The last prompt token predicts the first token of
both answers, so targets are a list of (column, token) instead of one label per column. Behind a sliding window that is
shorter than the pair, the answers are two documents with a prompt each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.data import packing
from llmctl.data.lazy_rows import LazyRows, digest_of
from llmctl.data.preference.encoding import Pair, identity, is_shared, row_length
from llmctl.data.sft.encoding import IGNORE_INDEX

CHOSEN, REJECTED = 0, 1


@dataclass(frozen=True)
class PairDocument:
    """A pair, or one answer with its prompt, for ``data.packing``; labels are unused (see ``PairRow``)."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    ends: list[int]
    source: str


@dataclass(frozen=True)
class PairRow:
    """A row of pairs.

    Attributes:
        numbers: Index of each pair among all pairs.
        packed: Token ids, positions and ends.
        column: Columns that predict a token of an answer.
        token: The token that each must predict.
        answer: The answer it belongs to: 2 x index of the pair in the row, plus 1 for the rejected answer.
    """

    numbers: list[int]
    packed: packing.PackedRow
    column: list[int]
    token: list[int]
    answer: list[int]

    @property
    def input_ids(self) -> list[int]:
        """Token ids of the row."""
        return self.packed.input_ids

    @property
    def source(self) -> str:
        """Sources of the pairs."""
        return self.packed.source


def rows_of(
    pairs: Sequence[Pair], how: str = "none", capacity: int = 0, window: int | None = None
) -> LazyRows[PairRow]:
    """Lays out all pairs in rows, one per row or packed; see ``packed``."""
    lengths = [row_length(pair, window) for pair in pairs]
    return packed(
        LazyRows(pairs.__getitem__, lengths, lambda: digest_of(pairs, identity)),
        packing.layout(lengths, capacity, how),
        window,
    )


def packed(pairs: LazyRows[Pair], placed: packing.Layout, window: int | None) -> LazyRows[PairRow]:
    """The rows of a layout; each is made when it is asked for.

    Args:
        pairs: The pairs; their lengths are those of ``row_length``.
        placed: Which of them are in which row.
        window: As for ``row_length``.
    """
    return LazyRows(
        lambda index: _row([pairs[number] for number in placed.rows[index]], placed.rows[index], window),
        [int(pairs.lengths[list(row)].sum()) for row in placed.rows],
        lambda: pairs.digest + placed.digest,
    )


def collate(rows: Sequence[PairRow], pad_id: int, multiple: int = 1) -> dict[str, NDArray[np.int64]]:
    """Collates rows: ``input_ids``, ``position_ids``, ``document_end``, ``attention_mask`` [B, T], and targets.

    Targets are ``column`` (index into the flattened B*T tokens), ``token`` and ``answer`` [N]; answer ``2 * p`` is the
    chosen one of pair p, ``2 * p + 1`` the rejected one. ``pair`` [P] holds the indices of the pairs.

    Args:
        rows: The B rows.
        pad_id: Padding token of ``input_ids``.
        multiple: T is rounded up to a multiple of this.
    """
    batch = packing.collate([row.packed for row in rows], pad_id, multiple)
    del batch["labels"]
    width, before = batch["input_ids"].shape[1], 0
    columns, tokens, answers = [], [], []
    for index, row in enumerate(rows):
        columns += [index * width + column for column in row.column]
        tokens += row.token
        answers += [before + answer for answer in row.answer]
        before += 2 * len(row.numbers)
    numbers = [number for row in rows for number in row.numbers]
    for name, values in (("column", columns), ("token", tokens), ("answer", answers), ("pair", numbers)):
        batch[name] = np.asarray(values, np.int64)
    return batch


def _documents(pair: Pair, shared: bool) -> list[PairDocument]:
    p, c, r = len(pair.prompt), len(pair.chosen), len(pair.rejected)
    if not shared:
        return [_document(pair, [*pair.prompt, *a], [*range(p + len(a))], [p + len(a)] * (p + len(a)))
                for a in (pair.chosen, pair.rejected)]  # fmt: skip
    ids = [*pair.prompt, *pair.chosen, *pair.rejected]
    positions = [*range(p + c), *range(p, p + r)]
    return [_document(pair, ids, positions, [len(ids)] * p + [p + c] * c + [len(ids)] * r)]


def _document(pair: Pair, ids: list[int], positions: list[int], ends: list[int]) -> PairDocument:
    return PairDocument(ids, [IGNORE_INDEX] * len(ids), positions, ends, pair.source)


def _row(pairs: Sequence[Pair], numbers: Sequence[int], window: int | None) -> PairRow:
    columns: list[int] = []
    tokens: list[int] = []
    answers: list[int] = []
    documents: list[PairDocument] = []
    start = 0
    for place, pair in enumerate(pairs):
        shared = is_shared(pair, window)
        p, c = len(pair.prompt), len(pair.chosen)
        # End of the prompt that precedes the rejected answer, and start of that answer.
        prompt_end, begin = (p, p + c) if shared else (p + c + p, p + c + p)
        for side, first, answer, after in ((CHOSEN, p, pair.chosen, p), (REJECTED, begin, pair.rejected, prompt_end)):
            columns += [start + after - 1, *range(start + first, start + first + len(answer) - 1)]
            tokens += answer
            answers += [2 * place + side] * len(answer)
        documents += _documents(pair, shared)
        start += row_length(pair, window)
    joined = packing.join(documents)
    # Each pair is listed once as a source, even if it is two documents.
    source = ", ".join(pair.source for pair in pairs)
    row = packing.PackedRow(joined.input_ids, joined.labels, joined.position_ids, joined.ends, source, len(documents))
    return PairRow([int(number) for number in numbers], row, columns, tokens, answers)
