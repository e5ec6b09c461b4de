"""Records of tables: CSV and TSV, Parquet, Arrow."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmctl.data.files.contents import ReadBytes, need_pyarrow, open_bytes, suffix_of
from llmctl.errors import DataError

LONGEST = 1 << 30
"""Characters that a cell of a CSV file may have."""
SEPARATORS = ",;\t"
ROWS = 1024
"""Rows of a Parquet file that are read at a time."""


def csv_rows(path: Path, read: ReadBytes | None = None) -> Iterator[tuple[str, str]]:
    """The rows of a CSV or TSV file; the separator is the most frequent one of the head line.

    Raises:
        DataError: The file is not UTF-8, or a row has other cells than the head line.
    """
    limit = csv.field_size_limit(LONGEST)
    try:
        with open_bytes(path, read) as stream:
            lines = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(stream))
            head = next(lines, "")
            separator = "\t" if suffix_of(path) == ".tsv" else max(SEPARATORS, key=head.count)
            rows = csv.reader(_after(head, lines), delimiter=separator, strict=True)
            names, line = next(rows, []), rows.line_num
            if len(set(names)) < len(names):
                raise DataError(f"{path}: the head line names a column twice: {', '.join(names)}")
            for row in rows:
                place, line = f"{path}:{line + 1}", rows.line_num
                if row and len(row) != len(names):
                    raise DataError(
                        f"{place} has {len(row)} cells, the head line has {len(names)}: {', '.join(names[:8])}; put quotes "
                        "around cells with separators or line breaks"
                    )
                if any(row):
                    yield place, _text(dict(zip(names, row, strict=True)))
    except UnicodeDecodeError:
        raise DataError(f"{path} is not valid UTF-8; convert it, e.g. with iconv") from None
    except csv.Error as error:
        raise DataError(f"{path} cannot be read: {error}; write it again") from None
    finally:
        csv.field_size_limit(limit)


def parquet_rows(path: Path, read: ReadBytes | None = None) -> Iterator[tuple[str, str]]:
    """The rows of a Parquet file.

    Raises:
        DataError: It is damaged, or pyarrow is not installed.
    """
    arrow = need_pyarrow(path)
    try:
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            share = path.stat().st_size / max(file.metadata.num_rows, 1)
            yield from _rows(path, file.iter_batches(ROWS), read, lambda batch: int(share * batch.num_rows))
    except (arrow.ArrowException, OSError, ValueError, ArithmeticError) as error:
        raise _damaged(path, error) from None


def arrow_rows(path: Path, read: ReadBytes | None = None) -> Iterator[tuple[str, str]]:
    """The rows of an Arrow file, or of a stream, which is what ``datasets`` writes.

    Raises:
        DataError: It is damaged, or pyarrow is not installed.
    """
    arrow = need_pyarrow(path)
    try:
        with arrow.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                file = arrow.ipc.open_file(source)
                batches = (file.get_batch(index) for index in range(file.num_record_batches))
            else:
                source.seek(0)
                batches = iter(arrow.ipc.open_stream(source))
            yield from _rows(path, batches, read, lambda batch: batch.nbytes)
    except (arrow.ArrowException, OSError, ValueError, ArithmeticError) as error:
        raise _damaged(path, error) from None


def _after(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    yield from lines


def _rows(path: Path, batches: Iterator[Any], read: ReadBytes | None, size: Any) -> Iterator[tuple[str, str]]:
    """The rows of Arrow batches; keys without a value are left out at depth, as columns have all keys of all rows."""
    number = 0
    for batch in batches:
        # Readers trust offsets inside of a batch, which a damaged file may have anywhere.
        batch.validate(full=True)
        for row in batch.to_pylist():
            number += 1
            yield f"{path}:row {number}", _text({key: _without_null(value) for key, value in row.items()})
        if read:
            read(size(batch))


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    return [_without_null(item) for item in value] if isinstance(value, list) else value


def _text(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False, default=str)


def _damaged(path: Path, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return DataError(f"{path} cannot be read: {error}; write or download it again")
