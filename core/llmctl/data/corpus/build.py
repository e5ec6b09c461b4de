"""Making corpora: documents are tokenised in several processes and written in order; corpora are joined.

The result does not depend on the number of processes: documents go out in batches and come back in the same order.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmctl import plugins, tokenizers
from llmctl.data.corpus.documents import Source
from llmctl.data.corpus.indexed import Corpus, new_corpus, same_place, token_dtype
from llmctl.errors import DataError

BATCH_BYTES = 1 << 18
AHEAD = 4
"""Batches a process may have waiting: bounds memory when reading is faster than tokenising."""

Encoded = tuple[NDArray, NDArray[np.int32], int]
"""Ids of all documents of a batch, tokens of each, and how many were empty."""


@dataclass(frozen=True)
class Made:
    """What was written.

    Attributes:
        documents: Number of documents.
        tokens: Number of tokens.
        empty: Documents left out because they had no text.
        dtype: Name of the ids' type.
        vocab_size: Of the tokenizer.
    """

    documents: int
    tokens: int
    empty: int
    dtype: str
    vocab_size: int


def build(
    source: Source,
    prefix: str | Path,
    encoder: BatchEncoder,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Made:
    """Tokenises documents into a new corpus; broken documents are left out.

    Args:
        source: The documents.
        prefix: Of the corpus.
        encoder: Tokenises.
        workers: Processes that tokenise.
        overwrite: Whether a corpus of this name is replaced.
        progress: Called with bytes of input as they are done.

    Raises:
        DataError: No document has text, there is a corpus already, or a process was killed.
    """
    empty = 0
    with new_corpus(prefix, encoder.dtype, overwrite) as writer, _pool(encoder, workers) as encode_all:
        batches, sizes = _batches(source), deque()
        for ids, lengths, skipped in encode_all(_noting(batches, sizes)):
            writer.add(ids, lengths)
            empty += skipped
            if progress:
                progress(sizes.popleft())
        if not writer.tokens:
            raise DataError(f"no document has any text: {', '.join(map(str, source.files[:3]))}")
    return Made(writer.documents, writer.tokens, empty, encoder.dtype.name, encoder.vocab_size)


def merge(prefixes: Sequence[str], target: str | Path, overwrite: bool = False) -> tuple[int, int]:
    """Joins corpora of one dtype into a new one, in order; its documents and tokens.

    Raises:
        DataError: A corpus cannot be read, dtypes differ, or there is a corpus of the target's name.
    """
    corpora = [Corpus(prefix) for prefix in prefixes]
    odd = next((corpus for corpus in corpora if corpus.dtype != corpora[0].dtype), None)
    if odd:
        raise DataError(
            f"{odd.prefix} holds {odd.dtype.name} and {corpora[0].prefix} {corpora[0].dtype.name}; only corpora of one "
            "dtype can be merged, made with the same tokenizer"
        )
    same = [corpus.prefix for corpus in corpora if same_place(corpus.prefix) == same_place(target)]
    if same:
        raise DataError(f"{same[0]} is merged into itself; choose another target")
    with new_corpus(target, corpora[0].dtype, overwrite) as writer:
        for corpus in corpora:
            writer.append(corpus)
    return writer.documents, writer.tokens


class BatchEncoder:
    """Texts to ids.

    Args:
        folder: Model folder with the tokenizer.
        append_eos: Whether each document ends with the end token.
        family: Whose card says what the folder's files do not.

    Raises:
        TokenizerError: The tokenizer cannot be read, or has no end token to append.
    """

    def __init__(self, folder: Path, append_eos: bool, family: str = "auto"):
        self._tokenizer = tokenizers.load(folder, "none", plugins.card_of(folder, family))
        self.arguments = (folder, append_eos, family)
        self.vocab_size = self._tokenizer.vocab_size
        self.dtype = token_dtype(self.vocab_size)
        eos = self._tokenizer.eos_id
        if append_eos and eos is None:
            raise tokenizers.TokenizerError(
                f"the tokenizer in {folder} has no end token, so --append-eos cannot be used"
            )
        self._end = [eos] if append_eos and eos is not None else []

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """The ids of a batch of documents."""
        rows = [self._tokenizer.encode(text, add_special=False) for text in texts if text.strip()]
        rows = [[*row, *self._end] for row in rows if row]
        lengths = np.array([len(row) for row in rows], np.int32)
        ids = np.array([token for row in rows for token in row], self.dtype)
        return ids, lengths, len(texts) - len(rows)


def _batches(source: Source) -> Iterator[tuple[list[str], int]]:
    """Texts of whole documents of about ``BATCH_BYTES``, and the bytes of input they took."""
    texts: list[str] = []
    nbytes = 0
    for document in source:
        nbytes += document.nbytes
        if not document.problem:
            texts.append(document.text)
        if nbytes >= BATCH_BYTES:
            yield texts, nbytes
            texts, nbytes = [], 0
    if texts:
        yield texts, nbytes


def _noting(batches: Iterable[tuple[list[str], int]], sizes: deque[int]) -> Iterator[list[str]]:
    for texts, nbytes in batches:
        sizes.append(nbytes)
        yield texts


@contextmanager
def _pool(encoder: BatchEncoder, workers: int) -> Iterator[Callable[[Iterator[list[str]]], Iterator[Encoded]]]:
    """Encodes batches in their order, in this process or in others that end with the block."""
    if workers == 1:
        yield lambda batches: map(encoder, batches)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, encoder.arguments)
    try:
        yield lambda batches: _in_order(pool, batches, workers * AHEAD)
    except BrokenProcessPool:
        raise DataError("a tokenising process was killed, perhaps for memory; use fewer --workers") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, batches: Iterator[list[str]], ahead: int) -> Iterator[Encoded]:
    waiting: deque[Future[Encoded]] = deque()
    for texts in batches:
        waiting.append(pool.submit(_encode, texts))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_worker: list[BatchEncoder] = []


def _start_worker(folder: Path, append_eos: bool, family: str) -> None:
    # Ctrl-C reaches every process of the terminal; only the parent answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker[:] = [BatchEncoder(folder, append_eos, family)]


def _encode(texts: list[str]) -> Encoded:
    return _worker[0](texts)
