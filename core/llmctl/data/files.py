"""Files of examples: JSON lines, JSON lists, CSV, Parquet and Arrow, each read as records of JSON text with their places."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from llmctl.data.rows import unique
from llmctl.errors import DISTRIBUTION, DataError

Record = tuple[str, str | None]
"""Place (``file:line``), and JSON text; None if it is not UTF-8."""


def read_lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """(line number, text) of the lines of a file that are not blank; text is None if the line is not UTF-8."""
    with _open(path) as stream:
        for number, raw in enumerate(stream, 1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                yield number, None
                continue
            if text.strip():
                yield number, text


def records(path: Path) -> Iterator[Record]:
    """The records of a file, in order; one whose suffix is unknown is read as JSON lines.

    Raises:
        DataError: The file is not what its suffix says, or needs a library that is not installed.
    """
    try:
        yield from READERS.get(_suffix(path), _json)(path)
    except (gzip.BadGzipFile, EOFError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}; write it again") from None


def find_files(path: Path, split: str, optional: bool) -> list[Path]:
    """The files of a split: a file itself, or of a folder those named after the split.

    A folder has ``<split>.jsonl``, shards ``<split>-*`` in it or in ``data``, or a folder ``<split>``; where nothing is named
    after a split, all its files are to train on.

    Raises:
        DataError: There is none, and the split is not optional.
    """
    if path.is_file():
        return [path]
    found = [path / (split + suffix) for suffix in _SUFFIXES if (path / (split + suffix)).is_file()]
    for folder, pattern in ((path, f"{split}-*"), (path / "data", f"{split}-*"), (path / split, "*")):
        if folder.is_dir():
            found += sorted(file for file in folder.glob(pattern) if _is_data(file))
    if (
        not found
        and split == "train"
        and path.is_dir()
        and not any((path / name).exists() for name in ("train", "dev"))
    ):
        found = sorted(file for file in path.iterdir() if _is_data(file) and not file.name.startswith("dev"))
    if not found and not optional:
        names = ", ".join(split + suffix for suffix in _SUFFIXES)
        what = (
            f"has no {split} data: looked for {names}, {split}-* and {split}/*" if path.exists() else "does not exist"
        )
        raise DataError(f"{path} {what}")
    return found


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")


def _suffix(path: Path) -> str:
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix


def _is_data(file: Path) -> bool:
    # `datasets` writes these next to its shards.
    return _suffix(file) in READERS and file.name not in ("dataset_info.json", "state.json", "dataset_dict.json")


def _json(path: Path) -> Iterator[Record]:
    if not _is_list(path):
        for number, text in read_lines(path):
            yield f"{path}:{number}", text
        return
    with _open(path) as stream:
        raw = stream.read()
    try:
        items = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} begins as a JSON list and is not a valid one: {error}; write it again") from None
    for number, item in enumerate(items, 1):
        yield f"{path}:item {number}", _text(item)


def _is_list(path: Path) -> bool:
    """Whether a file begins with a bracket, and its first line alone is no line of JSON."""
    first = next(read_lines(path), (0, None))[1]
    if first is None or not first.lstrip().startswith("["):
        return False
    try:
        items = json.loads(first)
    except (json.JSONDecodeError, RecursionError):
        return _suffix(path) == ".json" or first.strip() == "[" or first.lstrip()[1:].lstrip().startswith("{")
    return bool(items) and all(isinstance(item, dict) for item in items)


def _text(item: Any) -> str:
    return json.dumps(item, ensure_ascii=False, default=str)


def _csv(path: Path) -> Iterator[Record]:
    limit = csv.field_size_limit(1 << 30)
    try:
        with _open(path) as stream:
            lines = (line.decode("utf-8-sig") for line in stream)
            rows = csv.DictReader(lines, delimiter="\t" if _suffix(path) == ".tsv" else ",", strict=True)
            for number, row in enumerate(rows, 1):
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}: row {number} has not the {len(rows.fieldnames or ())} cells of the head line"
                    )
                yield f"{path}:row {number}", _text({key: value for key, value in row.items() if value})
    except UnicodeDecodeError:
        raise DataError(f"{path} is not valid UTF-8; convert it, e.g. with iconv") from None
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path) -> Iterator[Record]:
    _pyarrow(path)
    import pyarrow.parquet

    yield from _rows(path, lambda: pyarrow.parquet.ParquetFile(path).iter_batches(1024))


def _arrow(path: Path) -> Iterator[Record]:
    arrow = _pyarrow(path)

    def batches() -> Iterator[Any]:
        with open(path, "rb") as stream:
            file = stream.read(6) == b"ARROW1"
        source = arrow.memory_map(str(path))
        if file:
            reader = arrow.ipc.open_file(source)
            return (reader.get_batch(index) for index in range(reader.num_record_batches))
        return iter(arrow.ipc.open_stream(source))

    yield from _rows(path, batches)


def _rows(path: Path, batches: Callable[[], Iterator[Any]]) -> Iterator[Record]:
    """The rows of Arrow batches; keys without a value are left out, at any depth, as columns have all keys of all rows."""
    import pyarrow

    number = 0
    try:
        for batch in batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:row {number}", _text(_without_null(row))
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} cannot be read: {error}; write it again") from None


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    return [_without_null(item) for item in value] if isinstance(value, list) else value


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise DataError(
            f"{path} needs pyarrow, which is not installed. Run: pip install '{DISTRIBUTION}[data]'; or write JSON lines"
        ) from None
    return pyarrow


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _json, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".arrow": _arrow,
}  # fmt: skip
"""Suffix, without .gz -> reader."""
_SUFFIXES = (*READERS, ".jsonl.gz", ".json.gz")
