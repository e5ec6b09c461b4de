"""Sample indices: which tokens are in sample i, bit for bit as in Megatron's GPT datasets.

The documents of all epochs are shuffled and concatenated; sample k is the ``seq_length + 1`` tokens from position
``k * seq_length``, so neighbors share one token. ``order`` then shuffles the samples. If less than 80 % of the last epoch
is needed, it is shuffled separately, so that no document is seen much more often than another.

Documents are here the sequences of the corpus (see ``indexed``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.errors import DataError

LAST_EPOCH_SEPARATE_BELOW = 0.80


@dataclass(frozen=True)
class SampleIndex:
    """The arrays of a sample index.

    Attributes:
        documents: Shuffled documents of all epochs, int32.
        starts: (index into ``documents``, offset into that document) of the start of each sample and of the end of the
            last: int32 [samples + 1, 2], or int64 if int32 cannot count the documents.
        order: Index of the i-th sample in training, uint32 or int64 [samples].
    """

    documents: NDArray[np.int32]
    starts: NDArray
    order: NDArray

    def __len__(self) -> int:
        return len(self.order)


@dataclass(frozen=True)
class Epochs:
    """Number of epochs that provide enough samples.

    Attributes:
        count: Number of epochs; the last one may be partial.
        tokens: Tokens in an epoch.
        samples: Samples in all epochs.
        before_last: Samples before the last epoch, if that is shuffled separately; else None.
    """

    count: int
    tokens: int
    samples: int
    before_last: int | None


def split_documents(parts: Sequence[float], documents: int) -> list[range]:
    """Ranges of documents of train, valid and test, rounded as in Megatron Core."""
    borders, total = [0], 0.0
    for part in parts:
        total += part
        borders.append(int(round(total * documents)))
    borders[-1] = documents
    return [range(first, last) for first, last in zip(borders, borders[1:], strict=False)]


def plan(tokens: int, samples: int, seq_length: int) -> Epochs:
    """Epochs needed for a number of samples.

    Args:
        tokens: Tokens in an epoch.
        samples: Number of samples; 0 = those of one epoch.
        seq_length: Tokens in a sample, without the one that it shares with the next.

    Raises:
        DataError: There are too few tokens for one sample.
    """
    if tokens < 2 or (samples == 0 and tokens <= seq_length):
        raise DataError(
            f"{tokens} tokens are too few for a sample of {seq_length} tokens; use more data or a smaller seq_length"
        )
    count = max(1, -(-(samples * seq_length + 1) // tokens))
    before_last = None
    if count > 1:
        before, in_one = ((passes * tokens - 1) // seq_length for passes in (count - 1, 1))
        if samples - before < int(LAST_EPOCH_SEPARATE_BELOW * in_one):
            before_last = before
    return Epochs(count, tokens, (count * tokens - 1) // seq_length, before_last)


def build(sizes: NDArray[np.int32], documents: range, samples: int, seq_length: int, seed: int) -> SampleIndex:
    """Builds the sample index of a split.

    Args:
        sizes: Tokens of every document of the corpus.
        documents: Range of documents of the split.
        samples: Smallest number of samples; 0 = those of one epoch.
        seq_length: Tokens in a sample, without the one that it shares with the next.
        seed: Random seed of both shuffles, below 2**32.

    Raises:
        DataError: There are too few tokens for one sample.
    """
    epochs = plan(tokens_of(sizes, documents), samples, seq_length)
    # As in Megatron: the same generator, which shuffles documents first, then samples.
    random = np.random.RandomState(seed)
    laid_out = _documents(documents, epochs, random)
    starts = sample_starts(sizes, laid_out, epochs.samples, seq_length)
    return SampleIndex(laid_out, starts, _order(epochs, random))


def tokens_of(sizes: NDArray[np.int32], documents: range) -> int:
    """Number of tokens in a range of documents."""
    return int(sizes[documents.start : documents.stop].sum(dtype=np.int64))


def sample_starts(sizes: NDArray[np.int32], documents: NDArray, samples: int, seq_length: int) -> NDArray:
    """Starts of samples in the concatenated documents, and the end of the last; see ``SampleIndex.starts``."""
    lengths = sizes[documents]
    ends = np.cumsum(lengths, dtype=np.int64)
    positions = np.arange(samples + 1, dtype=np.int64) * seq_length
    which = np.searchsorted(ends, positions, side="right")
    starts = np.empty((samples + 1, 2), np.int32 if len(documents) < 2**31 else np.int64)
    starts[:, 0] = which
    starts[:, 1] = positions - (ends[which] - lengths[which])
    # The first sample starts with the first document even if that is empty.
    starts[0] = 0
    return starts


def _documents(documents: range, epochs: Epochs, random: np.random.RandomState) -> NDArray[np.int32]:
    once = np.arange(documents.start, documents.stop, dtype=np.int32)
    if epochs.before_last is None:
        everything = np.tile(once, epochs.count)
        random.shuffle(everything)
        return everything
    first, last = np.tile(once, epochs.count - 1), once
    random.shuffle(first)
    random.shuffle(last)
    return np.concatenate([first, last])


def _order(epochs: Epochs, random: np.random.RandomState) -> NDArray:
    dtype = np.uint32 if epochs.samples < np.iinfo(np.uint32).max - 1 else np.int64
    border = epochs.samples if epochs.before_last is None else epochs.before_last
    first = np.arange(border, dtype=dtype)
    last = np.arange(border, epochs.samples, dtype=dtype)
    random.shuffle(first)
    if len(last):
        random.shuffle(last)
    return np.concatenate([first, last])
