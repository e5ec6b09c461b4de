"""Reading the documents of a corpus from text files and JSON lines, with their sources and errors.

Nothing here needs numpy or a tokenizer, so all files are checked before tokenizing starts.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.data.files import read_lines
from llmctl.data.rows import parse_object
from llmctl.data.sft.examples import MAX_LISTED
from llmctl.errors import DataError

FORMATS = {"text": (".txt", ".text", ".md"), "jsonl": (".jsonl", ".json")}
JOINT = "\n\n"
"""Separator of the texts of several keys in a document."""


@dataclass(frozen=True)
class DocumentFiles:
    """The files of a corpus, and how they are divided into documents.

    Attributes:
        files: The files, in order.
        keys: Keys of a JSON line whose texts form its document.
        whole_files: Whether a text file is one document; else blank lines separate documents.
    """

    files: Sequence[Path]
    keys: Sequence[str] = ("text",)
    whole_files: bool = False

    def __iter__(self) -> Iterator[Document]:
        """All documents, including invalid ones."""
        for file in self.files:
            yield from self._of(file)

    @property
    def nbytes(self) -> int:
        """Size of all files in bytes."""
        return sum(file.stat().st_size for file in self.files)

    def _of(self, file: Path) -> Iterator[Document]:
        if file.suffix in FORMATS["jsonl"]:
            return _json_lines(file, self.keys)
        return _whole(file) if self.whole_files else _paragraphs(file)


@dataclass(frozen=True)
class Document:
    """A document.

    Attributes:
        text: Its text; empty if it is not valid.
        where: ``file:line`` of its start.
        nbytes: Its size in the file, in bytes.
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
        kind: ``"text"``, ``"jsonl"``, or ``"auto"`` for both, by suffix.

    Raises:
        DataError: A path does not exist, a folder has no such file, or the suffix of a file is unknown.
    """
    suffixes = FORMATS[kind] if kind in FORMATS else (*FORMATS["text"], *FORMATS["jsonl"])
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in suffixes)
            if not inside:
                raise DataError(f"{path} has no file with the suffix {', '.join(suffixes)}")
            found += inside
        elif not path.is_file():
            raise DataError(f"{path} does not exist; give text or JSON lines files, or a folder of them")
        elif path.suffix not in suffixes:
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


def check(source: DocumentFiles, progress: Callable[[int], None] | None = None) -> list[str]:
    """Reads all documents and returns their errors as ``file:line: reason``; tokenizes nothing.

    Args:
        source: The files.
        progress: Called with the size in bytes of each document.
    """
    problems = []
    for document in source:
        if document.problem:
            problems.append(f"{document.where}: {document.problem}")
        if progress:
            progress(document.nbytes)
    return problems


def format_problems(problems: Sequence[str]) -> str:
    """A message with the first problems, one per line."""
    more = f"\n  and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
    head = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the documents:"
    return "\n  ".join([head, *problems[:MAX_LISTED]]) + more


def _json_lines(file: Path, keys: Sequence[str]) -> Iterator[Document]:
    for number, line in read_lines(file):
        where, nbytes = f"{file}:{number}", len(line.encode()) if line else 0
        try:
            yield Document(_joined(line, keys), where, nbytes)
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
            raise ValueError(f"{key!r} must be a string, not {type(row[key]).__name__}")
    return JOINT.join(row[key] for key in keys if row[key].strip())


def _paragraphs(file: Path) -> Iterator[Document]:
    """Documents separated by blank lines, without the line break at the end."""
    lines: list[str] = []
    first = before = 0
    for number, text in read_lines(file):
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


def _whole(file: Path) -> Iterator[Document]:
    raw = file.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        yield Document("", f"{file}:{number}", len(raw), "not valid UTF-8")
        return
    yield Document(text, f"{file}:1", len(raw))
