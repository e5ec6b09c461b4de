"""Pairs to rows and arrays: a prompt with both its answers in one row, the rejected one blind to the chosen one.

Positions of the rejected answer go on from the prompt's end. The last token of the prompt predicts the first token of
either answer, so what is asked is a list of (column, token) rather than one label for each column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.data import packing
from llmctl.data.preference.encoding import Pair
from llmctl.data.sft.encoding import IGNORED

CHOSEN, REJECTED = 0, 1


@dataclass(frozen=True)
class Document:
    """Ids that see each other as ``data.packing`` says; labels are unused there, as the rows' own lists say more."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    ends: list[int]
    source: str


@dataclass(frozen=True)
class PairRow:
    """Pairs laid out in a row.

    Attributes:
        numbers: Number of each pair among all.
        laid: Ids, positions and ends.
        column: Columns that predict a token of an answer.
        token: What each must predict.
        answer: Which answer each belongs to: twice the place of its pair in the row, plus 1 for the rejected one.
    """

    numbers: list[int]
    laid: packing.PackedRow
    column: list[int]
    token: list[int]
    answer: list[int]

    @property
    def input_ids(self) -> list[int]:
        """Ids of the whole row."""
        return self.laid.input_ids

    @property
    def source(self) -> str:
        """Where the pairs come from."""
        return self.laid.source


def rows_of(pairs: Sequence[Pair], how: str = "none", capacity: int = 0, window: int | None = None) -> list[PairRow]:
    """All pairs in rows, one in each or packed.

    Args:
        pairs: The pairs; their numbers are their places here.
        how: ``none``, or a way to pack of ``data.packing``.
        capacity: Tokens of a packed row.
        window: Tokens that the model's attention looks back, its own included; a pair that is longer is laid out as two
            documents, since behind the chosen answer the rejected one would see less of the prompt than alone.
    """
    laid = [_documents(pair, window is None or len(pair) <= window) for pair in pairs]
    lengths = [sum(len(document.input_ids) for document in documents) for documents in laid]
    chosen = [[i] for i in range(len(pairs))] if how == "none" else packing.PACKERS[how](lengths, capacity)
    return [_row(pairs, laid, row) for row in chosen]


def collate(rows: Sequence[PairRow], pad_id: int, multiple: int = 1) -> dict[str, NDArray[np.int64]]:
    """``input_ids``, ``position_ids``, ``document_end`` and ``attention_mask`` [B, T], padded on the right, and what is asked.

    That is ``column`` (of the B*T tokens in one line), ``token`` and ``answer`` [N], and ``pair`` [P], the numbers of all
    pairs; answer ``2 * p`` is the chosen one of pair p, ``2 * p + 1`` the rejected one.

    Args:
        rows: B rows.
        pad_id: Fills ``input_ids``.
        multiple: T is the smallest multiple of this that holds the longest row.
    """
    batch = packing.collate([row.laid for row in rows], pad_id, multiple)
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


def _documents(pair: Pair, shared: bool) -> list[Document]:
    p, c, r = len(pair.prompt), len(pair.chosen), len(pair.rejected)
    if not shared:
        return [_document(pair, [*pair.prompt, *a], [*range(p + len(a))], [p + len(a)] * (p + len(a)))
                for a in (pair.chosen, pair.rejected)]  # fmt: skip
    ids = [*pair.prompt, *pair.chosen, *pair.rejected]
    positions = [*range(p + c), *range(p, p + r)]
    return [_document(pair, ids, positions, [len(ids)] * p + [p + c] * c + [len(ids)] * r)]


def _document(pair: Pair, ids: list[int], positions: list[int], ends: list[int]) -> Document:
    return Document(ids, [IGNORED] * len(ids), positions, ends, pair.source)


def _row(pairs: Sequence[Pair], laid: Sequence[list[Document]], numbers: list[int]) -> PairRow:
    columns: list[int] = []
    tokens: list[int] = []
    answers: list[int] = []
    start = 0
    for place, number in enumerate(numbers):
        pair = pairs[number]
        p, c = len(pair.prompt), len(pair.chosen)
        # Where the prompt ends that the rejected answer continues, and where that answer begins.
        prompt_end, begin = (p, p + c) if len(laid[number]) == 1 else (p + c + p, p + c + p)
        for side, first, answer, after in ((CHOSEN, p, pair.chosen, p), (REJECTED, begin, pair.rejected, prompt_end)):
            columns += [start + after - 1, *range(start + first, start + first + len(answer) - 1)]
            tokens += answer
            answers += [2 * place + side] * len(answer)
        start += sum(len(document.input_ids) for document in laid[number])
    documents = [document for number in numbers for document in laid[number]]
    joined = packing.join(documents)
    # A pair stands once in the list of sources, whether it is one document or two.
    source = ", ".join(pairs[number].source for number in numbers)
    row = packing.PackedRow(joined.input_ids, joined.labels, joined.position_ids, joined.ends, source, len(documents))
    return PairRow(list(numbers), row, columns, tokens, answers)
