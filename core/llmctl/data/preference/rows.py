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
from llmctl.data.preference.encoding import Pair
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


def rows_of(pairs: Sequence[Pair], how: str = "none", capacity: int = 0, window: int | None = None) -> list[PairRow]:
    """Lays out all pairs in rows, one per row or packed.

    Args:
        pairs: The pairs.
        how: ``none``, or an algorithm of ``data.packing``.
        capacity: Tokens in a packed row.
        window: Sliding window of the model's attention, in tokens; a longer pair becomes two documents, because after the
            chosen answer the rejected one would see less of the prompt than on its own.
    """
    packed = [_documents(pair, window is None or len(pair) <= window) for pair in pairs]
    lengths = [sum(len(document.input_ids) for document in documents) for documents in packed]
    chosen = [[i] for i in range(len(pairs))] if how == "none" else packing.PACKERS[how](lengths, capacity)
    return [_row(pairs, packed, row) for row in chosen]


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


def _row(pairs: Sequence[Pair], packed: Sequence[list[PairDocument]], numbers: list[int]) -> PairRow:
    columns: list[int] = []
    tokens: list[int] = []
    answers: list[int] = []
    start = 0
    for place, number in enumerate(numbers):
        pair = pairs[number]
        p, c = len(pair.prompt), len(pair.chosen)
        # End of the prompt that precedes the rejected answer, and start of that answer.
        prompt_end, begin = (p, p + c) if len(packed[number]) == 1 else (p + c + p, p + c + p)
        for side, first, answer, after in ((CHOSEN, p, pair.chosen, p), (REJECTED, begin, pair.rejected, prompt_end)):
            columns += [start + after - 1, *range(start + first, start + first + len(answer) - 1)]
            tokens += answer
            answers += [2 * place + side] * len(answer)
        start += sum(len(document.input_ids) for document in packed[number])
    documents = [document for number in numbers for document in packed[number]]
    joined = packing.join(documents)
    # Each pair is listed once as a source, even if it is two documents.
    source = ", ".join(pairs[number].source for number in numbers)
    row = packing.PackedRow(joined.input_ids, joined.labels, joined.position_ids, joined.ends, source, len(documents))
    return PairRow(list(numbers), row, columns, tokens, answers)
