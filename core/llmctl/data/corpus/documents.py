"""Documents for a corpus: texts out of text files and JSON lines, each with its place, or the reason it is broken.

Nothing here needs numpy or a tokenizer, so that all files can be checked before the work begins.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.data.sft.examples import LISTED, parse_object, read_lines
from llmctl.errors import DataError

FORMATS = {"text": (".txt", ".text", ".md"), "jsonl": (".jsonl", ".json")}
JOINT = "\n\n"
"""What stands between the texts of several keys of one document."""


@dataclass(frozen=True)
class Source:
    """Where documents come from and how they are told apart.

    Attributes:
        files: In order.
        keys: Keys of a JSON line whose texts make its document.
        whole_files: Whether a text file is one document; otherwise blank lines separate documents.
    """

    files: Sequence[Path]
    keys: Sequence[str] = ("text",)
    whole_files: bool = False

    def __iter__(self) -> Iterator[Document]:
        """All documents, the broken ones too."""
        for file in self.files:
            yield from self._of(file)

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    def _of(self, file: Path) -> Iterator[Document]:
        if file.suffix in FORMATS["jsonl"]:
            return _json_lines(file, self.keys)
        return _whole(file) if self.whole_files else _paragraphs(file)


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        text: Its text; empty where it is broken.
        where: ``file:line`` of its beginning.
        nbytes: Bytes of the file it took.
        problem: Why it is broken, or None.
    """

    text: str
    where: str
    nbytes: int
    problem: str | None = None


def find(paths: Sequence[Path], kind: str = "auto") -> list[Path]:
    """The files to read: those named, and of folders all files of the format, also of folders inside, by name.

    Args:
        paths: Files and folders.
        kind: ``"text"``, ``"jsonl"``, or ``"auto"`` for both, told apart by the suffix.

    Raises:
        DataError: A path is not there, a folder has no such file, or a file's suffix says nothing.
    """
    suffixes = FORMATS[kind] if kind in FORMATS else (*FORMATS["text"], *FORMATS["jsonl"])
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in suffixes)
            if not inside:
                raise DataError(f"{path} holds no file that ends in {', '.join(suffixes)}")
            found += inside
        elif not path.is_file():
            raise DataError(f"{path} is not there; give text or JSON lines files, or a folder of them")
        elif path.suffix not in suffixes:
            raise DataError(f"{path}: a file must end in {', '.join(suffixes)}, which tells its format; rename it")
        else:
            found.append(path)
    seen: set[Path] = set()
    for file in found:
        if file.resolve() in seen:
            raise DataError(f"{file} is given twice")
        seen.add(file.resolve())
    return found


def check(source: Source, progress: Callable[[int], None] | None = None) -> list[str]:
    """What is wrong, ``file:line: reason`` each; reads everything, tokenises nothing.

    Args:
        source: What to read.
        progress: Called with the bytes of each document read.
    """
    problems = []
    for document in source:
        if document.problem:
            problems.append(f"{document.where}: {document.problem}")
        if progress:
            progress(document.nbytes)
    return problems


def listed(problems: Sequence[str]) -> str:
    """A headline and the first problems, one a line."""
    more = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    head = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the documents:"
    return "\n  ".join([head, *problems[:LISTED]]) + more


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
            raise ValueError(f"{key!r} must be text, found {type(row[key]).__name__}")
    return JOINT.join(row[key] for key in keys if row[key].strip())


def _paragraphs(file: Path) -> Iterator[Document]:
    """Runs of lines between blank lines, without the line break at their end."""
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
