"""What a file holds: its compression and its kind, by its first bytes, then by its suffix; lines of text."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from llmctl.errors import DISTRIBUTION, DataError
from llmctl.io.limits import LINE_BYTES

ReadBytes = Callable[[float], Any]
"""Called with the number of bytes that were read from a file since the last call."""

COMPRESSED = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
"""First bytes -> compression."""
BINARY = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
"""First bytes -> kind."""
REFUSED = {
    b"PK\x03\x04": "a zip archive or an Excel file; unpack it, or save the sheet as CSV",
    b"BZh": "compressed with bzip2; decompress it, or compress it as .gz or .zst",
    b"\xfd7zXZ": "compressed with xz; decompress it, or compress it as .gz or .zst",
    b"\xff\xfe": "UTF-16 text; convert it to UTF-8, e.g. with iconv",
    b"\xfe\xff": "UTF-16 text; convert it to UTF-8, e.g. with iconv",
}
"""First bytes -> what the file is, and the way out."""
SUFFIXES = {
    ".jsonl": "lines", ".json": "lines", ".ndjson": "lines", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".arrow": "arrow", ".txt": "text", ".text": "text", ".md": "text",
}  # fmt: skip
"""Suffix, without that of a compression -> kind, where the content does not say it."""


def check_regular(path: Path) -> None:
    """Checks that what exists is a file or a folder; data are read more than once.

    Raises:
        DataError: It is a pipe or a device.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(f"{path} is a pipe or a device, which can be read only once; save its content as a file")


def suffix_of(path: Path) -> str:
    """The suffix of a file, without that of its compression."""
    name = path.name.lower()
    for compression in COMPRESSED.values():
        name = name.removesuffix(compression)
    return Path(name).suffix


def kind_of(path: Path) -> str:
    """``list`` or ``lines`` of JSON, ``csv``, ``parquet``, ``arrow``, or ``text``.

    Raises:
        DataError: The file is of a kind that is not read.
    """
    with open_bytes(path) as stream:
        head = stream.read(4096)
    for magic, kind in BINARY.items():
        if head.startswith(magic):
            return kind
    for magic, what in REFUSED.items():
        if head.startswith(magic):
            raise DataError(f"{path} is {what}")
    kind, start = SUFFIXES.get(suffix_of(path), "text"), head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if kind in ("text", "lines", "csv"):
        return {b"[": "list", b"{": "lines"}.get(start[:1], kind)
    return kind


def is_text(path: Path) -> bool:
    """Whether a file is plain text by its name or content; a text may begin as JSON does."""
    return SUFFIXES.get(suffix_of(path)) == "text" or kind_of(path) == "text"


def read_text(path: Path) -> str:
    """A text, decompressed, without a byte order mark.

    Raises:
        DataError: The file is no text in UTF-8, or its compressed data is damaged.
    """
    kind_of(path)
    with open_bytes(path) as stream:
        raw = stream.read()
    try:
        return str(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line} is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}; give a text, converted to UTF-8, e.g. with iconv"
        ) from None


@contextlib.contextmanager
def open_bytes(path: Path, read: ReadBytes | None = None) -> Iterator[IO[bytes]]:
    """A file, decompressed.

    Args:
        path: The file.
        read: Called with the bytes that were read, before decompression.

    Raises:
        DataError: The compressed data is damaged, or its library is not installed; or it is a pipe or a device.
    """
    check_regular(path)
    with open(path, "rb") as plain:
        head = plain.read(4)
        plain.seek(0)
        raw: Any = plain if read is None else io.BufferedReader(_Counted(plain, read), 1 << 16)
        how = next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), None)
        if how is None:
            yield raw
            return
        try:
            with gzip.GzipFile(fileobj=raw) if how == ".gz" else _zstandard(path, raw) as stream:
                yield stream
        except (gzip.BadGzipFile, EOFError, OSError, zlib.error) as error:
            # What the file system says has a number.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DataError(f"{path} is damaged: {error}; write or download it again") from None


def open_lines(path: Path, read: ReadBytes | None = None) -> Iterator[tuple[int, str | None]]:
    """(line number, text) of the lines of a file that are not blank; text is None if the line is not UTF-8.

    Args:
        path: The file, which may be compressed.
        read: Called with the bytes that were read.

    Raises:
        DataError: The compressed data is damaged, or its library is not installed.
    """
    with open_bytes(path, read) as stream:
        for number, raw in enumerate(iter(lambda: stream.readline(LINE_BYTES), b""), 1):
            if len(raw) == LINE_BYTES:
                raise DataError(f"{path}:{number} is longer than {LINE_BYTES} bytes; divide it, or decompress the file")
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                yield number, None
                continue
            if text.strip():
                yield number, text


def need_pyarrow(path: Path) -> Any:
    """The package pyarrow.

    Raises:
        DataError: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise DataError(
            f"{path} needs pyarrow, which is not installed. Run: pip install '{DISTRIBUTION}[data]'; or write JSON lines"
        ) from None
    return pyarrow


def _zstandard(path: Path, raw: IO[bytes]) -> IO[bytes]:
    arrow = need_pyarrow(path)
    return io.BufferedReader(arrow.CompressedInputStream(arrow.PythonFile(raw, mode="r"), "zstd"), 1 << 16)


class _Counted(io.RawIOBase):
    """A file whose reader is told how much is read."""

    def __init__(self, inner: Any, read: ReadBytes) -> None:
        self._inner, self._read = inner, read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._inner.readinto(buffer)
        self._read(count)
        return count
