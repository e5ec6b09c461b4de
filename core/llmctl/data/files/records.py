"""The records of a file of any kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from llmctl.data.files import json_records, tables
from llmctl.data.files.contents import ReadBytes, kind_of
from llmctl.errors import DataError

Record = tuple[str, str | None]
"""Place (``file:line``), and JSON text; None if it is not UTF-8."""
READERS: dict[str, Callable[[Path, ReadBytes | None], Iterator[Record]]] = {
    "lines": json_records.lines,
    "list": json_records.items,
    "csv": tables.csv_rows,
    "parquet": tables.parquet_rows,
    "arrow": tables.arrow_rows,
}
"""Kind of a file -> its reader."""


def records(path: Path, read: ReadBytes | None = None, name: str | None = None) -> Iterator[Record]:
    """The records of a file, in order.

    Args:
        path: The file.
        read: Called with the bytes that were read.
        name: Name of the file in places and messages, if not its path.

    Raises:
        DataError: The file is damaged, of a kind that is not read, or needs a library that is not installed.
    """
    if name is None:
        yield from _records(path, read)
        return
    try:
        for place, text in _records(path, read):
            yield name + place.removeprefix(str(path)), text
    except DataError as error:
        raise DataError(str(error).replace(str(path), name)) from None


def _records(path: Path, read: ReadBytes | None) -> Iterator[Record]:
    kind = kind_of(path)
    if kind == "text":
        raise DataError(
            f"{path} looks like plain text; examples are JSON lines, a JSON list, CSV, TSV, Parquet or Arrow. A corpus for "
            "pretraining is made of it with llmctl data build"
        )
    yield from READERS[kind](path, read)
