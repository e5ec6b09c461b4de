"""Where each record of a file is.

The records of JSON lines are read from the file itself. Those of other files, which cannot be entered at any place, are written
into the cache as they are read once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.files import ReadBytes, Record, records
from llmctl.data.files.contents import COMPRESSED, kind_of
from llmctl.data.index_cache import Cache
from llmctl.errors import DataError
from llmctl.io.written import Places

EDGE = 1 << 16
"""Bytes at the beginning and the end of a file that say whether it is the same."""
PAGE = 1 << 13
"""Records whose places are written at a time."""
TEXTS = "records.bin"
"""The file of an entry with the texts of the records."""


def facts_of(path: Path) -> dict[str, Any]:
    """What tells whether a file is the same: name, size, time of the last change, and a hash of its beginning and end."""
    with path.open("rb") as stream:
        state = os.fstat(stream.fileno())
        edges = stream.read(EDGE)
        stream.seek(max(state.st_size - EDGE, 0))
        edges += stream.read(EDGE)
    return {
        "name": path.name, "size": state.st_size, "changed": state.st_mtime_ns, "edges": hashlib.sha256(edges).hexdigest(),
    }  # fmt: skip


@dataclass(frozen=True)
class FileIndex:
    """The records of a file.

    Attributes:
        path: The file.
        facts: What it was when it was indexed.
        texts: The file with their texts: itself, or a copy of the records in the cache.
        starts: Where each record begins in ``texts``, and where the last one ends [N + 1].
        numbers: Number of each record in messages [N].
        label: What is before the number in messages.
    """

    path: Path
    facts: dict[str, Any]
    texts: Path
    starts: NDArray[np.int64]
    numbers: NDArray[np.int64]
    label: str

    def __len__(self) -> int:
        return len(self.numbers)

    def record(self, index: int) -> Record:
        """Place and text of a record.

        Raises:
            DataError: The file has changed.
        """
        with self._opened() as stream:
            stream.seek(int(self.starts[index]))
            return self._next(stream, index)

    def __iter__(self) -> Iterator[Record]:
        with self._opened() as stream:
            stream.seek(int(self.starts[0]))
            for index in range(len(self)):
                yield self._next(stream, index)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        with self.texts.open("rb") as stream:
            state = os.fstat(stream.fileno())
            if self.texts == self.path and (state.st_size, state.st_mtime_ns) != (
                self.facts["size"],
                self.facts["changed"],
            ):
                raise DataError(f"{self.path} has changed since the run began; start the run again")
            yield stream

    def _next(self, stream: IO[bytes], index: int) -> Record:
        begin, end = int(self.starts[index]), int(self.starts[index + 1])
        raw = stream.read(end - begin)
        place = f"{self.path}:{self.label}{self.numbers[index]}"
        try:
            return place, raw.decode("utf-8-sig" if begin == 0 else "utf-8")
        except UnicodeDecodeError:
            return place, None


def open_index(path: Path, cache: Cache, read: ReadBytes | None = None) -> FileIndex:
    """The index of a file, from the cache or made.

    Args:
        path: The file.
        cache: The cache.
        read: Called with the bytes that were read.

    Raises:
        DataError: The file cannot be read, or no cache can be written.
    """
    facts, plain = facts_of(path), _is_plain(path)
    made = cache.get_or_write(
        {"index of": facts, "version": 1}, Places, lambda folder: _write(path, plain, folder, read)
    )
    texts = path if plain else made.folder / TEXTS
    return FileIndex(path, facts, texts, made.arrays["starts"], made.arrays["numbers"], made.result["label"])


def _is_plain(path: Path) -> bool:
    with path.open("rb") as stream:
        return not stream.read(4).startswith(tuple(COMPRESSED)) and kind_of(path) == "lines"


def _write(path: Path, plain: bool, folder: Path, read: ReadBytes | None) -> Places:
    label = ""
    with _Column(folder / "starts.npy") as starts, _Column(folder / "numbers.npy") as numbers:
        if plain:
            with path.open("rb") as stream:
                end = _index_lines(stream, starts, numbers, read)
        else:
            end = 0
            with (folder / TEXTS).open("wb") as texts:
                for place, text in records(path, read):
                    label, number = _divided(place.removeprefix(f"{path}:"))
                    starts.add(end)
                    numbers.add(number)
                    # A line that is not UTF-8 stays one.
                    end += texts.write(b"\xff" if text is None else text.encode("utf-8", "surrogatepass"))
        starts.add(end)
    return {"label": label}


def _index_lines(stream: IO[bytes], starts: _Column, numbers: _Column, read: ReadBytes | None) -> int:
    at = 0
    for number, line in enumerate(stream, 1):
        if line.strip(b" \t\r\n\xef\xbb\xbf" if number == 1 else None):
            starts.add(at)
            numbers.add(number)
        at += len(line)
        if read:
            read(len(line))
    return at


def _divided(place: str) -> tuple[str, int]:
    label, space, number = place.rpartition(" ")
    return label + space, int(number)


class _Column:
    """A file of an array of int64 that grows.

    Args:
        path: The file, in numpy's format.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._count, self._page = path, 0, array("q")

    def __enter__(self) -> _Column:
        self._stream = self._path.open("wb")
        self._header()
        self._start = self._stream.tell()
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._stream.seek(0)
        self._header()
        assert self._stream.tell() == self._start
        self._stream.close()

    def add(self, value: int) -> None:
        """Appends a value."""
        self._page.append(value)
        if len(self._page) == PAGE:
            self._flush()

    def _flush(self) -> None:
        self._stream.write(self._page.tobytes())
        self._count += len(self._page)
        self._page = array("q")

    def _header(self) -> None:
        # numpy leaves room for a larger shape, so the header does not grow.
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(np.int64)),
            "fortran_order": False,
            "shape": (self._count,),
        }
        np.lib.format.write_array_header_1_0(self._stream, header)
