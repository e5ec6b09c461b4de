"""Samples of a corpus: which tokens make sample i, as in Megatron's GPT datasets, bit for bit.

The documents of all epochs are shuffled and laid end to end; sample k is the ``seq_length + 1`` tokens from position
``k * seq_length`` of that line, so that neighbours share one token. ``order`` then shuffles the samples. Where less than
80 % of the last epoch is needed, it is shuffled apart, so that no document is seen far more often than another.

A document is here a sequence of the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.errors import DataError

LAST_EPOCH_APART_BELOW = 0.80


@dataclass(frozen=True)
class SampleIndex:
    """The arrays of an index.

    Attributes:
        documents: Documents in the order they are laid out, all epochs, int32.
        starts: Index into ``documents`` and offset into that document at which each sample begins, and at last where
            the last one ends: int32 [samples + 1, 2]; int64 where there are more documents than int32 counts.
        order: The sample to take as the i-th, uint32 or int64 [samples].
    """

    documents: NDArray[np.int32]
    starts: NDArray
    order: NDArray

    def __len__(self) -> int:
        return len(self.order)


@dataclass(frozen=True)
class Epochs:
    """How often documents are passed through to give enough samples.

    Attributes:
        count: Passes, the last one perhaps in part.
        tokens: Tokens of a pass.
        samples: Samples of all passes.
        apart: Samples before the last pass where it is shuffled apart, else None.
    """

    count: int
    tokens: int
    samples: int
    apart: int | None


def split_documents(parts: Sequence[float], documents: int) -> list[range]:
    """The documents of train, valid and test: neighbours, borders rounded as in Megatron Core."""
    borders, total = [0], 0.0
    for part in parts:
        total += part
        borders.append(int(round(total * documents)))
    borders[-1] = documents
    return [range(first, last) for first, last in zip(borders, borders[1:], strict=False)]


def plan(tokens: int, samples: int, seq_length: int) -> Epochs:
    """Passes needed for so many samples; 0 samples = all of one pass.

    Args:
        tokens: Tokens of a pass.
        samples: Samples wanted.
        seq_length: Tokens of a sample, the one shared with the next not counted.

    Raises:
        DataError: There are too few tokens for any sample.
    """
    if tokens < 2 or (samples == 0 and tokens <= seq_length):
        raise DataError(f"{tokens} tokens are too few for a sample of {seq_length} tokens; use more data")
    count = max(1, -(-(samples * seq_length + 1) // tokens))
    apart = None
    if count > 1:
        before, in_one = ((passes * tokens - 1) // seq_length for passes in (count - 1, 1))
        if samples - before < int(LAST_EPOCH_APART_BELOW * in_one):
            apart = before
    return Epochs(count, tokens, (count * tokens - 1) // seq_length, apart)


def build(sizes: NDArray[np.int32], documents: range, samples: int, seq_length: int, seed: int) -> SampleIndex:
    """The index of a split.

    Args:
        sizes: Tokens of every document of the corpus.
        documents: Those of the split.
        samples: At least so many; 0 = all of one pass.
        seq_length: Tokens of a sample, the one shared with the next not counted.
        seed: Of both shuffles, below 2**32.

    Raises:
        DataError: There are too few tokens for any sample.
    """
    epochs = plan(tokens_of(sizes, documents), samples, seq_length)
    # Megatron's generator, in Megatron's order of calls: first the documents, then the samples.
    random = np.random.RandomState(seed)
    lined_up = _documents(documents, epochs, random)
    starts = sample_starts(sizes, lined_up, epochs.samples, seq_length)
    return SampleIndex(lined_up, starts, _order(epochs, random))


def tokens_of(sizes: NDArray[np.int32], documents: range) -> int:
    """Tokens of a range of documents."""
    return int(sizes[documents.start : documents.stop].sum(dtype=np.int64))


def sample_starts(sizes: NDArray[np.int32], documents: NDArray, samples: int, seq_length: int) -> NDArray:
    """Where samples begin in documents laid end to end, and where the last one ends: [samples + 1, 2]."""
    lengths = sizes[documents]
    ends = np.cumsum(lengths, dtype=np.int64)
    positions = np.arange(samples + 1, dtype=np.int64) * seq_length
    which = np.searchsorted(ends, positions, side="right")
    starts = np.empty((samples + 1, 2), np.int32 if len(documents) < 2**31 else np.int64)
    starts[:, 0] = which
    starts[:, 1] = positions - (ends[which] - lengths[which])
    # The first sample begins with the first document even if that is empty.
    starts[0] = 0
    return starts


def _documents(documents: range, epochs: Epochs, random: np.random.RandomState) -> NDArray[np.int32]:
    once = np.arange(documents.start, documents.stop, dtype=np.int32)
    if epochs.apart is None:
        everything = np.tile(once, epochs.count)
        random.shuffle(everything)
        return everything
    first, last = np.tile(once, epochs.count - 1), once
    random.shuffle(first)
    random.shuffle(last)
    return np.concatenate([first, last])


def _order(epochs: Epochs, random: np.random.RandomState) -> NDArray:
    dtype = np.uint32 if epochs.samples < np.iinfo(np.uint32).max - 1 else np.int64
    border = epochs.samples if epochs.apart is None else epochs.apart
    first = np.arange(border, dtype=dtype)
    last = np.arange(border, epochs.samples, dtype=dtype)
    random.shuffle(first)
    if len(last):
        random.shuffle(last)
    return np.concatenate([first, last])
