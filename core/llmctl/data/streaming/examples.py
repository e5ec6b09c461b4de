"""Examples that are parsed when they are asked for; all of them are parsed once before, so that errors come first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from llmctl._version import __version__
from llmctl.data.files import ReadBytes
from llmctl.data.formats import Problems, Reader
from llmctl.data.formats.reader import Unread
from llmctl.data.index_cache import Cache
from llmctl.data.reading import check
from llmctl.data.streaming.index import FileIndex, open_index
from llmctl.errors import DataError
from llmctl.io.written import Seen, UnreadKey

E = TypeVar("E")


class StreamedExamples(Sequence[E], Generic[E]):
    """Examples of files.

    Args:
        files: The files.
        parse: Parses a line.
        chosen: Which of their records these are, in order; None = all.
    """

    def __init__(
        self, files: Sequence[FileIndex], parse: Callable[[str | None, str], E], chosen: NDArray[np.int64] | None = None
    ) -> None:
        self.files, self._parse, self.chosen = files, parse, chosen
        self._ends = np.cumsum([len(file) for file in files])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.chosen is None else len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> E: ...
    @overload
    def __getitem__(self, index: slice) -> list[E]: ...
    def __getitem__(self, index: int | slice) -> E | list[E]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        number = index % len(self) if self.chosen is None else int(self.chosen[index])
        file = int(np.searchsorted(self._ends, number, side="right"))
        place, text = self.files[file].record(number - (int(self._ends[file - 1]) if file else 0))
        try:
            return self._parse(text, place)
        except ValueError as error:
            raise DataError(f"{place} is not what it was when the run began: {error}") from None

    def choose(self, indices: NDArray[np.int64]) -> StreamedExamples[E]:
        """Some of the examples.

        Args:
            indices: Which, in order.
        """
        return StreamedExamples(self.files, self._parse, indices if self.chosen is None else self.chosen[indices])


def open_examples(
    files: Sequence[Path],
    make_reader: Callable[[], Reader[Any]],
    reader: Reader[Any],
    split: str,
    chosen_cache: Path | None = None,
    read: ReadBytes | None = None,
) -> StreamedExamples[Any]:
    """The examples of files, all checked.

    Args:
        files: The files.
        make_reader: Makes what parses lines.
        reader: Gets what is seen in all lines: formats, and keys that are not read.
        split: What the data is for, for messages.
        chosen_cache: Folder for the indices; None = next to each file.
        read: Called with the bytes that were read, those of each file twice.

    Raises:
        DataError: A file has no examples, or lines are not valid: each kind of mistake is named once, with its places.
    """
    problems = Problems()
    indices = []
    for path in files:
        cache = Cache.near(path, chosen_cache)
        index = open_index(path, cache, read)
        indices.append(index)
        if not len(index):
            problems.add(str(path), "the file has no examples")
            continue
        _add_seen(reader, path, _seen(index, cache, make_reader(), problems, read))
    check(problems, split)
    return StreamedExamples(indices, make_reader())


class _Invalid(Exception):
    """A file has lines that are not valid."""


def _seen(
    index: FileIndex, cache: Cache, reader: Reader[Any], problems: Problems, read: ReadBytes | None
) -> dict[str, Any]:
    """Formats, and keys that are not read, of a file whose lines are valid; the others are added to the problems."""

    def write(_: Path) -> Seen:
        before, share = problems.count, index.facts["size"] / len(index)
        for place, text in index:
            if read:
                read(share)
            try:
                reader(text, place)
            except ValueError as error:
                problems.add(place, str(error))
        if problems.count > before:
            raise _Invalid
        return {"formats": reader.counts(), "unread": {key: _unread(found) for key, found in reader.unread.items()}}

    formats = [form.name for form in reader.formats]
    key = {"seen in": index.facts, "by": formats, "columns": dict(reader.columns), "llmctl": __version__}
    try:
        return cache.get_or_write(key, Seen, write).result
    except _Invalid:
        return {"formats": {}, "unread": {}}


def _unread(found: Unread) -> UnreadKey:
    return {"count": found.count, "places": [place.rpartition(":")[2] for place in found.places]}


def _add_seen(reader: Reader[Any], path: Path, seen: dict[str, Any]) -> None:
    reader.found[str(path)] = Counter(seen["formats"])
    for key, found in seen["unread"].items():
        known = reader.unread.setdefault(key, Unread())
        for place in found["places"]:
            known.add(f"{path}:{place}")
        known.count += found["count"] - len(found["places"])
