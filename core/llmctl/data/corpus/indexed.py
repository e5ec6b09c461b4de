"""Corpora of token ids as Megatron stores them: ``PREFIX.bin`` holds the ids, ``PREFIX.idx`` where each sequence lies.

An ``.idx`` is: magic, version (u64), dtype code (u8), number of sequences n (u64), entries d of the document index (u64),
then int32 sizes [n], int64 byte pointers [n] and int64 document borders [d], all little endian. ``.bin`` is the raw ids
one after another. Document k consists of the sequences from ``borders[k]`` to ``borders[k + 1]``; corpora made here
have one sequence in a document.
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

from llmctl.checkpoint import atomic_file
from llmctl.errors import DataError

MAGIC, VERSION = b"MMIDIDX\x00\x00", 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: "u1", 2: "i1", 3: "i2", 4: "i4", 5: "i8", 6: "f8", 7: "f4", 8: "u2", 9: "u4", 10: "u8"}
_OLD_MAGIC = b"TNTIDX"
_CHUNK = 1 << 20
_COPIED = 16 << 20


def idx_path(prefix: str | Path) -> Path:
    """The index of a corpus."""
    return Path(f"{prefix}.idx")


def bin_path(prefix: str | Path) -> Path:
    """The ids of a corpus."""
    return Path(f"{prefix}.bin")


def without_suffix(name: str | Path) -> str:
    """The prefix of a corpus, of which a person may have named a file."""
    return str(name).removesuffix(".idx").removesuffix(".bin")


def same_place(prefix: str | Path) -> str:
    """Where a corpus lies behind all links: equal for all names of one corpus."""
    return os.path.realpath(idx_path(prefix))


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and int32 that holds every id of a vocabulary, added tokens included."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


class Corpus:
    """A corpus, memory mapped and checked: both files agree and are whole.

    Attributes:
        prefix: Path without ``.bin`` and ``.idx``.
        dtype: Of the ids.
        sizes: Tokens of each sequence, int32 [n].
        pointers: First byte of each sequence in ``.bin``, int64 [n].
        borders: First sequence of each document, and at last n: int64 [documents + 1].

    Raises:
        DataError: A file is missing, is not of this format, is truncated, or the two do not belong together.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = without_suffix(prefix)
        index, ids = idx_path(self.prefix), bin_path(self.prefix)
        for path in (index, ids):
            if not path.is_file():
                raise DataError(f"there is no corpus {self.prefix}: {path} is missing; make one with llmctl data build")
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
    def content_mark(self) -> str:
        """Hash of the ids at both ends of ``.bin``: tells a corpus from another one whose sequences are as long."""
        digest = hashlib.sha256(self._ids[:_CHUNK].tobytes())
        digest.update(self._ids[-_CHUNK:].tobytes())
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the sizes of all sequences: two corpora with the same one have the same sample index."""
        digest = hashlib.sha256()
        for start in range(0, len(self), _CHUNK):
            digest.update(np.ascontiguousarray(self.sizes[start : start + _CHUNK]).tobytes())
        return digest.hexdigest()

    def get(self, sequence: int, start: int = 0, stop: int | None = None) -> NDArray:
        """Ids ``start`` to ``stop`` of a sequence, without copying."""
        size = int(self.sizes[sequence])
        stop = size if stop is None else min(stop, size)
        first, item = int(self.pointers[sequence]), self.dtype.itemsize
        return self._ids[first + start * item : first + max(stop, start) * item].view(self.dtype)

    def beginning(self, nbytes: int) -> NDArray:
        """The ids in the first so many bytes, without copying."""
        return self._ids[: min(nbytes, len(self._ids)) // self.dtype.itemsize * self.dtype.itemsize].view(self.dtype)

    def document(self, number: int) -> NDArray:
        """Ids of a document, counted from 0.

        Raises:
            DataError: There is no such document.
        """
        if not 0 <= number < self.documents:
            raise DataError(f"{self.prefix} has documents 0 to {self.documents - 1}, no document {number}")
        parts = [self.get(i) for i in range(int(self.borders[number]), int(self.borders[number + 1]))]
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)


class CorpusWriter:
    """Writes documents one after another. Made by ``new_corpus``.

    Args:
        stream: The open ``.bin``.
        dtype: Of the ids.
        prefix: For messages.
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
                raise DataError(f"{self._prefix}: the id {int(ids.max())} does not fit {self.dtype.name}")
        self._stream.write(np.ascontiguousarray(ids, self.dtype.newbyteorder("<")).data)
        self._append(np.asarray(lengths), np.arange(1, len(lengths) + 1))

    def append(self, corpus: Corpus) -> None:
        """Appends all documents of a corpus of the same dtype."""
        assert corpus.dtype == self.dtype
        for sequence in range(0, len(corpus), _CHUNK):
            last = min(sequence + _CHUNK, len(corpus)) - 1
            self._copy(corpus, sequence, last)
        self._append(corpus.sizes, corpus.borders[1:])

    def finish(self, path: Path) -> None:
        """Writes the index to ``path`` and everything to disk."""
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
        for start in range(int(corpus.pointers[first]), end, _COPIED):
            self._stream.write(corpus._ids[start : min(start + _COPIED, end)].data)

    def _append(self, sizes: NDArray, borders: NDArray) -> None:
        """Takes note of sequences and of the documents that end with them, both relative to what is there already."""
        if len(sizes) and int(sizes.max()) > np.iinfo(np.int32).max:
            raise DataError(f"{self._prefix}: a document has {int(sizes.max()):,} tokens; the format allows 2**31 - 1")
        self._borders.append(np.asarray(borders, np.int64) + self._sequences)
        self._sizes.append(np.array(sizes, np.int32))
        self._sequences += len(sizes)
        self.documents += len(borders)
        self.tokens += int(np.sum(sizes, dtype=np.int64))


@contextmanager
def new_corpus(prefix: str | Path, dtype: np.dtype, overwrite: bool = False) -> Iterator[CorpusWriter]:
    """A writer whose corpus appears under ``prefix`` when the block ends without an exception, and not at all otherwise.

    Raises:
        DataError: There is a corpus already and ``overwrite`` is not set.
        CheckpointError: A file cannot be written, or the disk is full.
    """
    index, ids = idx_path(prefix), bin_path(prefix)
    check_free(prefix, overwrite)
    with atomic_file(index) as new_index, atomic_file(ids) as new_ids, open(new_ids, "wb") as stream:
        writer = CorpusWriter(stream, dtype, str(prefix))
        yield writer
        writer.finish(new_index)
        # The index comes last, and an old one goes first: no moment shows an index beside ids of another corpus.
        index.unlink(missing_ok=True)


def check_free(prefix: str | Path, overwrite: bool) -> None:
    """Passes if a corpus may be written under ``prefix``.

    Raises:
        DataError: There is one already and ``overwrite`` is not set, or the name is a folder's.
    """
    if str(prefix).endswith("/"):
        raise DataError(f"{prefix} names a folder; name a corpus in it, such as {prefix}web")
    found = [path for path in (idx_path(prefix), bin_path(prefix)) if path.exists()]
    if found and not overwrite:
        raise DataError(f"{found[0]} already exists; choose another prefix or allow overwriting it with --overwrite")


def _header(path: Path) -> tuple[np.dtype, int, int]:
    """Dtype, number of sequences and of document borders, the file's length checked against them."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        head = stream.read(HEADER.size)
    if head.startswith(_OLD_MAGIC):
        raise DataError(f"{path} is an index of the old lazy format (TNTIDX); make the corpus anew: llmctl data build")
    if head[: len(MAGIC)] != MAGIC:
        raise DataError(f"{path} is no index of a corpus: it begins with {head[: len(MAGIC)]!r}, not with {MAGIC!r}")
    if len(head) < HEADER.size:
        raise DataError(f"{path} is truncated: {size} bytes, its header alone has {HEADER.size}")
    _, version, code, count, borders = HEADER.unpack(head)
    if version != VERSION:
        raise DataError(f"{path} has version {version} of the format; version {VERSION} can be read")
    if code not in DTYPES:
        known = ", ".join(f"{number} {np.dtype(name).name}" for number, name in DTYPES.items())
        raise DataError(f"{path} has the unknown dtype code {code}; known are {known}")
    needed = HEADER.size + 12 * count + 8 * borders
    # A byte for each sequence may follow: the mode of multimodal corpora, which text does not need.
    if size not in (needed, needed + count):
        what = "truncated" if size < needed else "damaged"
        raise DataError(f"{path} is {what}: {count} sequences need {needed} bytes, the file has {size}")
    return np.dtype(DTYPES[code]), count, borders


def _check(corpus: Corpus, ids: Path) -> None:
    """Passes if the index is sound and describes ``ids``."""
    index, count, item = idx_path(corpus.prefix), len(corpus.sizes), corpus.dtype.itemsize
    borders = corpus.borders
    if not len(borders) or borders[0] != 0 or borders[-1] != count or (np.diff(borders) < 0).any():
        raise DataError(f"{index}: the document index does not rise from 0 to {count}, the number of sequences")
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
            raise DataError(
                f"{where} begins at byte {pointers[k]}, before byte {ends[k]}, where the one before it ends"
            )
        end = int(ends[-1])
    have = ids.stat().st_size
    if have != end:
        what = "is truncated" if have < end else "is longer"
        raise DataError(
            f"{ids} {what}: it has {have} bytes and {index.name} describes {end}; they do not belong together"
        )
