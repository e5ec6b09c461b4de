"""Building corpora: documents are tokenized in several processes and written in order; corpora are merged.

The result does not depend on the number of processes: batches of documents return in the order in which they were sent.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmctl import plugins, tokenizers
from llmctl.data.corpus.documents import DocumentFiles
from llmctl.data.corpus.indexed import Corpus, new_corpus, real_path, token_dtype
from llmctl.errors import DataError
from llmctl.runtime.children import end_with_parent

BATCH_BYTES = 1 << 18
AHEAD = 4
"""Maximum number of batches queued per process; bounds memory if reading is faster than tokenizing."""

Encoded = tuple[NDArray, NDArray[np.int32], int]
"""Token ids of a batch of documents, tokens of each document, and number of empty documents."""


@dataclass(frozen=True)
class BuildResult:
    """Statistics of a corpus that was built.

    Attributes:
        documents: Number of documents.
        tokens: Number of tokens.
        empty: Number of empty documents, which are left out.
        dtype: Name of the data type of the ids.
        vocab_size: Vocabulary size of the tokenizer.
    """

    documents: int
    tokens: int
    empty: int
    dtype: str
    vocab_size: int


def build(
    source: DocumentFiles,
    prefix: str | Path,
    encoder: BatchEncoder,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> BuildResult:
    """Tokenizes documents into a new corpus; invalid documents are left out.

    Args:
        source: The documents.
        prefix: Prefix of the corpus.
        encoder: Tokenizes batches of texts.
        workers: Number of processes.
        overwrite: Whether to replace an existing corpus.
        progress: Called with the number of input bytes that were read.

    Raises:
        DataError: All documents are empty, the corpus exists, or a process was killed.
    """
    empty = 0
    with new_corpus(prefix, encoder.dtype, overwrite) as writer, _pool(encoder, workers) as encode_all:
        for ids, lengths, skipped in encode_all(_batches(source, progress)):
            writer.add(ids, lengths)
            empty += skipped
        if not writer.tokens:
            raise DataError(f"all documents are empty: {', '.join(map(str, source.files[:3]))}")
    return BuildResult(writer.documents, writer.tokens, empty, encoder.dtype.name, encoder.vocab_size)


def merge(prefixes: Sequence[str], target: str | Path, overwrite: bool = False) -> tuple[int, int]:
    """Concatenates corpora of the same data type; returns the number of documents and tokens.

    Raises:
        DataError: A corpus cannot be read, data types differ, or the target exists.
    """
    corpora = [Corpus(prefix) for prefix in prefixes]
    different = next((corpus for corpus in corpora if corpus.dtype != corpora[0].dtype), None)
    if different:
        raise DataError(
            f"{different.prefix} holds {different.dtype.name} and {corpora[0].prefix} {corpora[0].dtype.name}; only corpora of the same "
            "data type and tokenizer can be merged"
        )
    same = [corpus.prefix for corpus in corpora if real_path(corpus.prefix) == real_path(target)]
    if same:
        raise DataError(f"{same[0]} is both source and target; choose another target")
    with new_corpus(target, corpora[0].dtype, overwrite) as writer:
        for corpus in corpora:
            writer.append(corpus)
    return writer.documents, writer.tokens


class BatchEncoder:
    """Tokenizes batches of texts.

    Args:
        folder: Model folder with the tokenizer.
        append_eos: Whether to append EOS to each document.
        family: Model family whose card completes the tokenizer's files; ``auto`` = from config.json.

    Raises:
        TokenizerError: The tokenizer cannot be read, or has no EOS token to append.
    """

    def __init__(self, folder: Path, append_eos: bool, family: str = "auto"):
        self._tokenizer = tokenizers.load(folder, "none", plugins.card_of(folder, family))
        self.arguments = (folder, append_eos, family)
        self.vocab_size = self._tokenizer.vocab_size
        self.dtype = token_dtype(self.vocab_size)
        eos = self._tokenizer.eos_id
        if append_eos and eos is None:
            raise tokenizers.TokenizerError(f"the tokenizer in {folder} has no EOS token; leave out --append-eos")
        self._end = [eos] if append_eos and eos is not None else []

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """Tokenizes a batch of texts, without those that are empty."""
        rows = [self._tokenizer.encode(text, add_special=False) for text in texts if text.strip()]
        rows = [[*row, *self._end] for row in rows if row]
        lengths = np.array([len(row) for row in rows], np.int32)
        ids = np.array([token for row in rows for token in row], self.dtype)
        return ids, lengths, len(texts) - len(rows)


def _batches(source: DocumentFiles, read: Callable[[int], None] | None) -> Iterator[list[str]]:
    """Batches of whole documents of about ``BATCH_BYTES``."""
    texts: list[str] = []
    nbytes = 0
    for document in source.documents(read):
        nbytes += document.nbytes
        if not document.problem:
            texts.append(document.text)
        if nbytes >= BATCH_BYTES:
            yield texts
            texts, nbytes = [], 0
    if texts:
        yield texts


@contextmanager
def _pool(encoder: BatchEncoder, workers: int) -> Iterator[Callable[[Iterator[list[str]]], Iterator[Encoded]]]:
    """Context of a function that encodes batches in order, in this process or in a pool."""
    if workers == 1:
        yield lambda batches: map(encoder, batches)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (os.getpid(), *encoder.arguments))
    try:
        yield lambda batches: _in_order(pool, batches, workers * AHEAD)
    except BrokenProcessPool:
        raise DataError("a tokenizing process was killed, perhaps out of memory; use fewer --workers") from None
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


def _start_worker(parent: int, folder: Path, append_eos: bool, family: str) -> None:
    # Ctrl-C is sent to all processes of the terminal; only the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)
    _worker[:] = [BatchEncoder(folder, append_eos, family)]


def _encode(texts: list[str]) -> Encoded:
    return _worker[0](texts)
