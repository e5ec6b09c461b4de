"""Megatron's indexed datasets: ``PREFIX.bin`` holds token ids, ``PREFIX.idx`` the position of each sequence.

An ``.idx`` is: magic, version (u64), dtype code (u8), number of sequences n (u64), length d of the document index (u64),
then int32 sizes [n], int64 byte pointers [n] and int64 document indices [d], all little endian. ``.bin`` is the raw ids.
Document k consists of the sequences from ``borders[k]`` to ``borders[k + 1]``; corpora that llmctl builds have one sequence
per document.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from llmctl.data.corpus import corpus_files
from llmctl.data.corpus.corpus_files import idx_path
from llmctl.errors import DataError

MAGIC, VERSION = b"MMIDIDX\x00\x00", 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: "u1", 2: "i1", 3: "i2", 4: "i4", 5: "i8", 6: "f8", 7: "f4", 8: "u2", 9: "u4", 10: "u8"}
_OLD_MAGIC = b"TNTIDX"
_CHUNK = 1 << 20
_COPY_CHUNK = 16 << 20


def without_suffix(name: str | Path) -> str:
    """The prefix of a corpus, given as prefix or as the path of one of its files."""
    return str(name).removesuffix(".idx").removesuffix(".bin")


def real_path(prefix: str | Path) -> str:
    """Path of a corpus with links resolved: the same for all names of a corpus."""
    return os.path.realpath(idx_path(prefix))


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 if it can hold all ids of a vocabulary, added tokens included, else int32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


class Corpus:
    """A corpus, memory-mapped; opening it checks that both files are complete and fit together.

    Attributes:
        prefix: Path without ``.bin`` and ``.idx``.
        dtype: Data type of the ids.
        sizes: Tokens of each sequence, int32 [n].
        pointers: Byte offset of each sequence in ``.bin``, int64 [n].
        borders: First sequence of each document, then n: int64 [documents + 1].

    Raises:
        DataError: A file is missing, has another format or is truncated, or the two do not fit together.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = without_suffix(prefix)
        index, ids = corpus_files.current(self.prefix)
        for path in (index, ids):
            if not path.is_file():
                raise DataError(
                    f"corpus {self.prefix} does not exist: {path} is missing; build it with llmctl data build"
                )
        self.dtype, count, borders = _header(index)
        parts = np.memmap(index, np.uint8, "r", offset=HEADER.size) if count or borders else np.empty(0, np.uint8)
        self.sizes = parts[: 4 * count].view("<i4")
        self.pointers = parts[4 * count : 12 * count].view("<i8")
        self.borders = parts[12 * count : 12 * count + 8 * borders].view("<i8")
        _check(self, ids)
        self._ids = np.memmap(ids, np.uint8, "r") if ids.stat().st_size else np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.borders) - 1

    @cached_property
    def tokens(self) -> int:
        """Number of tokens."""
        return int(self.sizes.sum(dtype=np.int64))

    @cached_property
    def content_hash(self) -> str:
        """Hash of the start and end of ``.bin``; distinguishes corpora with sequences of the same lengths."""
        digest = hashlib.sha256(self._ids[:_CHUNK].tobytes())
        digest.update(self._ids[-_CHUNK:].tobytes())
        return digest.hexdigest()

    @cached_property
    def sizes_hash(self) -> str:
        """Hash of the sizes of all sequences; corpora with the same hash have the same sample index."""
        digest = hashlib.sha256()
        for start in range(0, len(self), _CHUNK):
            digest.update(np.ascontiguousarray(self.sizes[start : start + _CHUNK]).tobytes())
        return digest.hexdigest()

    def get(self, sequence: int, start: int = 0, stop: int | None = None) -> NDArray:
        """Ids ``start`` to ``stop`` of a sequence, not copied."""
        size = int(self.sizes[sequence])
        stop = size if stop is None else min(stop, size)
        first, item = int(self.pointers[sequence]), self.dtype.itemsize
        return self._ids[first + start * item : first + max(stop, start) * item].view(self.dtype)

    def beginning(self, nbytes: int) -> NDArray:
        """The ids in the first ``nbytes`` bytes, not copied."""
        return self._ids[: min(nbytes, len(self._ids)) // self.dtype.itemsize * self.dtype.itemsize].view(self.dtype)

    def document(self, number: int) -> NDArray:
        """Ids of a document; documents count from 0.

        Raises:
            DataError: There is no such document.
        """
        if not 0 <= number < self.documents:
            raise DataError(f"{self.prefix} has no document {number}; it has documents 0 to {self.documents - 1}")
        parts = [self.get(i) for i in range(int(self.borders[number]), int(self.borders[number + 1]))]
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)


class CorpusWriter:
    """Writes a corpus document by document; see ``new_corpus``.

    Args:
        stream: The open ``.bin``.
        dtype: Data type of the ids.
        prefix: Prefix of the corpus, for messages.
    """

    def __init__(self, stream: BinaryIO, dtype: np.dtype, prefix: str):
        self.dtype, self.documents, self.tokens = np.dtype(dtype), 0, 0
        self._stream, self._prefix, self._sequences = stream, prefix, 0
        self._sizes: list[NDArray[np.int32]] = []
        self._borders: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]

    def add(self, ids: NDArray, lengths: NDArray) -> None:
        """Appends documents of one sequence each.

        Args:
            ids: Ids of all of them [sum of lengths].
            lengths: Tokens of each.

        Raises:
            DataError: An id does not fit the dtype.
        """
        assert len(ids) == int(np.sum(lengths))
        if len(ids) and self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            if int(ids.max()) > limits.max or int(ids.min()) < limits.min:
                raise DataError(f"{self._prefix}: the id {int(ids.max())} does not fit into {self.dtype.name}")
        self._stream.write(np.ascontiguousarray(ids, self.dtype.newbyteorder("<")).data)
        self._append(np.asarray(lengths), np.arange(1, len(lengths) + 1))

    def append(self, corpus: Corpus) -> None:
        """Appends all documents of a corpus of the same data type."""
        assert corpus.dtype == self.dtype
        for sequence in range(0, len(corpus), _CHUNK):
            last = min(sequence + _CHUNK, len(corpus)) - 1
            self._copy(corpus, sequence, last)
        self._append(corpus.sizes, corpus.borders[1:])

    def finish(self, path: Path) -> None:
        """Writes the index to ``path``, and syncs both files to disk."""
        sizes = np.concatenate([np.empty(0, np.int32), *self._sizes]).astype("<i4")
        borders = np.concatenate(self._borders).astype("<i8")
        ends = np.cumsum(sizes, dtype="<i8") * self.dtype.itemsize
        pointers = np.concatenate([np.zeros(1, "<i8"), ends])[: len(sizes)]
        code = next(code for code, name in DTYPES.items() if np.dtype(name) == self.dtype)
        with open(path, "wb") as stream:
            stream.write(HEADER.pack(MAGIC, VERSION, code, len(sizes), len(borders)))
            for part in (sizes, pointers, borders):
                stream.write(part.data if part.size else b"")
            stream.flush()
            os.fsync(stream.fileno())
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _copy(self, corpus: Corpus, first: int, last: int) -> None:
        contiguous = corpus.pointers[first + 1 : last + 1] == (
            corpus.pointers[first:last] + corpus.sizes[first:last].astype(np.int64) * corpus.dtype.itemsize
        )
        if not contiguous.all():
            for sequence in range(first, last + 1):
                self._stream.write(corpus.get(sequence).tobytes())
            return
        end = int(corpus.pointers[last]) + int(corpus.sizes[last]) * corpus.dtype.itemsize
        for start in range(int(corpus.pointers[first]), end, _COPY_CHUNK):
            self._stream.write(corpus._ids[start : min(start + _COPY_CHUNK, end)].data)

    def _append(self, sizes: NDArray, borders: NDArray) -> None:
        """Records sequences and document borders, both relative to those already recorded."""
        if len(sizes) and int(sizes.max()) > np.iinfo(np.int32).max:
            raise DataError(
                f"{self._prefix}: a document has {int(sizes.max()):,} tokens; the format allows at most 2**31 - 1"
            )
        self._borders.append(np.asarray(borders, np.int64) + self._sequences)
        self._sizes.append(np.array(sizes, np.int32))
        self._sequences += len(sizes)
        self.documents += len(borders)
        self.tokens += int(np.sum(sizes, dtype=np.int64))


@contextmanager
def new_corpus(prefix: str | Path, dtype: np.dtype, overwrite: bool = False) -> Iterator[CorpusWriter]:
    """A writer of a new corpus, which appears under ``prefix`` only if the block ends without an exception.

    Raises:
        DataError: The corpus exists and ``overwrite`` is not set.
        FileError: A file cannot be written, or the disk is full.
    """
    check_free(prefix, overwrite)
    with corpus_files.replaced(prefix) as (new_index, new_ids), open(new_ids, "wb") as stream:
        writer = CorpusWriter(stream, dtype, str(prefix))
        yield writer
        writer.finish(new_index)


def check_free(prefix: str | Path, overwrite: bool) -> None:
    """Checks that a corpus may be written under ``prefix``.

    Raises:
        DataError: It exists and ``overwrite`` is not set, or the prefix is a folder.
    """
    if str(prefix).endswith("/"):
        raise DataError(f"{prefix} is a folder; give a prefix in it, such as {prefix}web")
    # A .bin without an .idx is left over from a killed build.
    if idx_path(prefix).exists() and not overwrite:
        raise DataError(
            f"{idx_path(prefix)} already exists; choose another prefix or allow overwriting it with --overwrite"
        )


def _header(path: Path) -> tuple[np.dtype, int, int]:
    """Data type, number of sequences and of document borders; checks the length of the file against them."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        head = stream.read(HEADER.size)
    if head.startswith(_OLD_MAGIC):
        raise DataError(f"{path} has the old lazy format (TNTIDX); build the corpus again with llmctl data build")
    if head[: len(MAGIC)] != MAGIC:
        raise DataError(
            f"{path} is not the index of a corpus: it starts with {head[: len(MAGIC)]!r}, not with {MAGIC!r}"
        )
    if len(head) < HEADER.size:
        raise DataError(f"{path} is truncated: it has {size} bytes, its header alone {HEADER.size}")
    _, version, code, count, borders = HEADER.unpack(head)
    if version != VERSION:
        raise DataError(f"{path} has format version {version}; only version {VERSION} is supported")
    if code not in DTYPES:
        known = ", ".join(f"{number} {np.dtype(name).name}" for number, name in DTYPES.items())
        raise DataError(f"{path} has the unknown dtype code {code}; known are {known}")
    needed = HEADER.size + 12 * count + 8 * borders
    # Multimodal corpora have one more byte per sequence, their mode, which is not needed for text.
    if size not in (needed, needed + count):
        what = "truncated" if size < needed else "damaged"
        raise DataError(f"{path} is {what}: {count} sequences need {needed} bytes, the file has {size}")
    return np.dtype(DTYPES[code]), count, borders


def _check(corpus: Corpus, ids: Path) -> None:
    """Checks that the index is valid and describes ``ids``."""
    index, count, item = idx_path(corpus.prefix), len(corpus.sizes), corpus.dtype.itemsize
    borders = corpus.borders
    if not len(borders) or borders[0] != 0 or borders[-1] != count or (np.diff(borders) < 0).any():
        raise DataError(f"{index}: the document index does not increase from 0 to {count}, the number of sequences")
    end = 0
    for start in range(0, count, _CHUNK):
        sizes = corpus.sizes[start : start + _CHUNK].astype(np.int64)
        pointers = corpus.pointers[start : start + _CHUNK]
        ends = np.concatenate([[end], pointers + sizes * item])
        wrong = np.flatnonzero((sizes < 0) | (pointers < ends[:-1]))
        if len(wrong):
            k = int(wrong[0])
            where = f"{index} is damaged: sequence {start + k}"
            if sizes[k] < 0:
                raise DataError(f"{where} has {sizes[k]} tokens")
            raise DataError(f"{where} starts at byte {pointers[k]}, before the previous one ends at byte {ends[k]}")
        end = int(ends[-1])
    have = ids.stat().st_size
    if have != end:
        what = "is truncated" if have < end else "is longer"
        raise DataError(
            f"{ids} {what}: it has {have} bytes, but {index.name} describes {end}; the two files do not fit together"
        )
