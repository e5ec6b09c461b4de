"""What the data doctor finds: statistics, errors and warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from llmctl.data.files import ReadBytes, records
from llmctl.data.formats import Problems, Reader
from llmctl.data.sft.encoding import IGNORE_INDEX, EncodedExample
from llmctl.errors import TokenizerError

E = TypeVar("E")
R = TypeVar("R")

EMPTY_ANSWERS = tuple(
    f"{key!r} is empty" for key in ("tgt", "output", "completion", "chosen", "rejected", "response")
) + ("an answer is empty",)
"""What is said of lines whose answers are empty."""
MANY_EQUAL = 3
"""Number of prompts with the same answer that is worth a warning."""


@dataclass(frozen=True)
class Finding:
    """An error or a warning.

    Attributes:
        kind: Name of the check.
        error: Whether it is an error, not a warning.
        message: What was found.
        places: ``file:line`` of every occurrence, or a line for each kind.
        count: Number of occurrences.
    """

    kind: str
    error: bool
    message: str
    places: Sequence[str]
    count: int


@dataclass
class DoctorReport:
    """Statistics and findings.

    Attributes:
        examples: Number of valid examples.
        numbers: Topic -> name -> statistic.
        findings: Errors, then warnings.
        rows: Encoded examples, without those that are dropped.
    """

    examples: int
    numbers: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    rows: list[EncodedExample] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """Number of errors."""
        return sum(finding.error for finding in self.findings)

    def add(self, kind: str, error: bool, message: str, places: Sequence[str], count: int | None = None) -> None:
        """Adds a finding if it occurs anywhere.

        Args:
            kind: Name of the check.
            error: Whether it is an error.
            message: What was found.
            places: Where.
            count: How often, if not once for each place.
        """
        if places:
            self.findings.append(Finding(kind, error, message, list(places), len(places) if count is None else count))
            self.findings.sort(key=lambda finding: not finding.error)


@dataclass(frozen=True)
class Lines:
    """The lines of files.

    Attributes:
        reader: What parsed them, with what it counted.
        examples: Those that are valid.
        problems: What is wrong with the others.
        empty: Places of those whose answer is empty.
    """

    reader: Reader[Any]
    examples: Sequence[Any]
    problems: Problems
    empty: Sequence[str]


def read_lines(files: Sequence[Path], reader: Reader[Any], read: ReadBytes | None = None) -> Lines:
    """Parses all lines.

    Args:
        files: The files.
        reader: Parses a line.
        read: Called with the bytes that were read.
    """
    problems = Problems()
    examples, empty = [], []
    for file in files:
        for place, text in records(file, read):
            try:
                examples.append(reader(text, place))
            except ValueError as error:
                if str(error) in EMPTY_ANSWERS:
                    empty.append(place)
                else:
                    problems.add(place, str(error))
    return Lines(reader, examples, problems, empty)


def encode_each(
    report: DoctorReport, examples: Sequence[E], encode: Callable[[E], R | None], progress: Callable[[int], Any] | None
) -> tuple[list[E], list[R | None]]:
    """The examples that can be encoded, and the row of each, None if it is dropped; the others are added to the report.

    Args:
        report: Where errors are added.
        examples: Examples with a ``source``.
        encode: Encodes one.
        progress: Called with 1 for each example.
    """
    problems = Problems()
    kept: list[E] = []
    rows: list[R | None] = []
    for example in examples:
        try:
            rows.append(encode(example))
            kept.append(example)
        except TokenizerError as error:
            problems.add(example.source, str(error))
        if progress:
            progress(1)
    report.add("not-encoded", True, "lines that cannot be encoded", problems.lines(), problems.count)
    return kept, rows


def add_lines(report: DoctorReport, read: Lines) -> None:
    """Adds what was seen while lines were read: formats, keys that are not read, lines that are not valid."""
    report.numbers["formats"] = read.reader.counts()
    for key, seen in read.reader.unread.items():
        report.add("unread-key", False, f"lines whose key {key!r} holds text that is not read", seen.places, seen.count)
    report.add("bad-line", True, "lines that are not valid", read.problems.lines(), read.problems.count)
    report.add("empty-answer", True, "empty answers", read.empty)


def add_duplicates(report: DoctorReport, talks: Iterable[tuple[str, str, str]]) -> None:
    """Adds examples that occur twice, and answers that many examples share.

    Args:
        report: Where they are added.
        talks: Place, content and answer of each example.
    """
    first: dict[str, str] = {}
    answers: Counter[str] = Counter()
    repeated = []
    for place, content, answer in talks:
        if content in first:
            repeated.append(f"{place} is {first[content]}")
        else:
            first[content] = place
            answers[answer.strip()] += 1
    report.add("duplicate-example", False, "duplicate examples", repeated)
    shared = [f"{count} times: {_short(answer)}" for answer, count in answers.most_common() if count >= MANY_EQUAL]
    report.add("duplicate-answer", False, f"answers that {MANY_EQUAL} or more different prompts share", shared)


def add_endings(report: DoctorReport, ends: set[int], cut: set[str], longest: str) -> None:
    """Adds answers without EOS.

    Args:
        report: Where they are added, with the encoded examples.
        ends: Ids of the EOS tokens.
        cut: Places of the rows whose answers were truncated.
        longest: The length that they were truncated to, for the message.
    """
    rows = report.rows
    without = [row.source for row in rows if not ends.intersection(_last_answer(row))]
    missing, full = ([place for place in without if (place in cut) == was_cut] for was_cut in (False, True))
    why = "the tokenizer has none" if not ends else "the chat template adds none"
    report.numbers["endings"] = {"ended": len(rows) - len(without), "cut": len(full), "missing": len(missing)}
    report.add("missing-eos", True, f"answers without EOS token ({why}); the model would not learn to stop", missing)
    report.add("cut-answer", False, f"answers truncated to {longest}, so without EOS token", full)


def _last_answer(row: EncodedExample) -> list[int]:
    last = max(i for i, label in enumerate(row.labels) if label != IGNORE_INDEX)
    first = last
    while first and row.labels[first - 1] != IGNORE_INDEX:
        first -= 1
    return row.labels[first : last + 1]


def spread(lengths: Sequence[int]) -> dict[str, float]:
    ordered = sorted(lengths)
    if not ordered:
        return {}
    at = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    found: dict[str, float] = {name: ordered[round(part * (len(ordered) - 1))] for name, part in at.items()}
    return {**found, "mean": round(sum(ordered) / len(ordered), 1)}


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
