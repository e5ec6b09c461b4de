"""Reading the documents of a corpus from texts and from files of records, with their sources and errors.

Nothing here needs numpy or a tokenizer, so all files are checked before tokenizing starts.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.data.files import ReadBytes, open_lines, records
from llmctl.data.files.contents import SUFFIXES, is_text, kind_of, open_bytes, suffix_of
from llmctl.data.formats import Problems
from llmctl.data.formats.rows import kind as row_kind
from llmctl.data.formats.rows import parse_object
from llmctl.errors import DataError

FORMATS = {"text": ("text",), "jsonl": ("lines", "list"), "csv": ("csv",), "parquet": ("parquet",), "arrow": ("arrow",)}
"""Value of ``--format`` -> kinds of files."""
JOINT = "\n\n"
"""Separator of the texts of several keys in a document."""


@dataclass(frozen=True)
class DocumentFiles:
    """The files of a corpus, and how they are divided into documents.

    Attributes:
        files: The files, in order.
        keys: Keys or columns of a row whose texts form its document.
        whole_files: Whether a text file is one document; else blank lines separate documents.
    """

    files: Sequence[Path]
    keys: Sequence[str] = ("text",)
    whole_files: bool = False

    def documents(self, read: ReadBytes | None = None) -> Iterator[Document]:
        """All documents, including invalid ones.

        Args:
            read: Called with the bytes that were read.
        """
        for file in self.files:
            if _kind(file) != "text":
                yield from _rows(file, self.keys, read)
            else:
                yield from _whole(file, read) if self.whole_files else _paragraphs(file, read)

    @property
    def nbytes(self) -> int:
        """Size of all files in bytes."""
        return sum(file.stat().st_size for file in self.files)


@dataclass(frozen=True)
class Document:
    """A document.

    Attributes:
        text: Its text; empty if it is not valid.
        where: ``file:line`` of its start.
        nbytes: Size of its text in bytes.
        problem: Why it is not valid, or None.
    """

    text: str
    where: str
    nbytes: int
    problem: str | None = None


def find(paths: Sequence[Path], kind: str = "auto") -> list[Path]:
    """Finds the files to read; folders are searched recursively, in order of names.

    Args:
        paths: Files and folders.
        kind: A key of ``FORMATS``, or ``"auto"`` for all. Files of a folder are chosen by suffix, others are told by content too.

    Raises:
        DataError: A path does not exist, a folder has no such file, or a file is of no such kind.
    """
    kinds = FORMATS.get(kind, tuple(name for names in FORMATS.values() for name in names))
    suffixes = [suffix for suffix, name in SUFFIXES.items() if name in kinds]
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and suffix_of(file) in suffixes)
            if not inside:
                raise DataError(
                    f"{path} has no file with the suffix {', '.join(suffixes)}, nor one of them before .gz or .zst"
                )
            found += inside
        elif not path.is_file():
            raise DataError(
                f"{path} does not exist; give text, JSON lines, CSV, Parquet or Arrow files, or a folder of them"
            )
        elif _kind(path) not in kinds or _kind(path) == "text" and suffix_of(path) not in SUFFIXES:
            raise DataError(
                f"{path}: the suffix must be one of {', '.join(suffixes)}, which give the format; rename the file"
            )
        else:
            found.append(path)
    seen: set[Path] = set()
    for file in found:
        if file.resolve() in seen:
            raise DataError(f"{file} is given twice")
        seen.add(file.resolve())
    return found


def check(source: DocumentFiles, read: ReadBytes | None = None) -> Problems:
    """Reads all documents and returns their errors; tokenizes nothing.

    Args:
        source: The files.
        read: Called with the bytes that were read.
    """
    problems = Problems()
    for document in source.documents(read):
        if document.problem:
            problems.add(document.where, document.problem)
    return problems


def format_problems(problems: Problems) -> str:
    """A message with a line for each kind of problem."""
    return problems.message(f"problem{'s' if problems.count > 1 else ''} in the documents:")


def _kind(file: Path) -> str:
    """The kind of a file."""
    return "text" if is_text(file) else kind_of(file)


def _rows(file: Path, keys: Sequence[str], read: ReadBytes | None) -> Iterator[Document]:
    for where, text in records(file, read):
        nbytes = len(text.encode("utf-8", "replace")) if text else 0
        try:
            yield Document(_joined(text, keys), where, nbytes)
        except ValueError as error:
            yield Document("", where, nbytes, str(error))


def _joined(line: str | None, keys: Sequence[str]) -> str:
    row = parse_object(line)
    for key in keys:
        if key not in row:
            near = difflib.get_close_matches(key, list(row), 1, cutoff=0.5)
            shown = ", ".join(map(repr, list(row)[:8]))
            raise ValueError(f"no key {key!r}; " + (f"did you mean {near[0]!r}?" if near else f"it has {shown}"))
        if not isinstance(row[key], str):
            raise ValueError(f"{key!r} must be a string, not {row_kind(row[key])}")
    return JOINT.join(row[key] for key in keys if row[key].strip())


def _paragraphs(file: Path, read: ReadBytes | None) -> Iterator[Document]:
    """Documents separated by blank lines, without the line break at the end."""
    lines: list[str] = []
    first = before = 0
    for number, text in open_lines(file, read):
        if text is None:
            yield Document("", f"{file}:{number}", 0, "not valid UTF-8")
            continue
        if lines and number != before + 1:
            yield _paragraph(file, first, lines)
            lines = []
        if not lines:
            first = number
        lines.append(text)
        before = number
    if lines:
        yield _paragraph(file, first, lines)


def _paragraph(file: Path, first: int, lines: Sequence[str]) -> Document:
    text = "".join(lines)
    return Document(text.removesuffix("\n").removesuffix("\r"), f"{file}:{first}", len(text.encode()))


def _whole(file: Path, read: ReadBytes | None) -> Iterator[Document]:
    with open_bytes(file, read) as stream:
        raw = stream.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        yield Document("", f"{file}:{number}", len(raw), "not valid UTF-8")
        return
    yield Document(text, f"{file}:1", len(raw))
