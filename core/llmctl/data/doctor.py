"""What is wrong with data for fine-tuning, as a model would see it: lines, lengths, labels, templates, duplicates.

An error is what training would do wrong: a line that cannot be read, an answer of which no token is left, an answer that
does not end, a prompt that generation would write differently. Everything else is a warning or a number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmctl.data.packing import PACKERS
from llmctl.data.sft.encoding import IGNORED, Encoder, Row, conversation, prompt_ids
from llmctl.data.sft.examples import Example, parse_example, read_lines

SHOWN = 10
OFTEN = 3
"""So many equal answers to different questions are worth a word."""


@dataclass(frozen=True)
class Finding:
    """Something found.

    Attributes:
        kind: Name of the check.
        error: Whether it is wrong, rather than worth a look.
        message: What it is.
        places: ``file:line`` of all of them.
    """

    kind: str
    error: bool
    message: str
    places: Sequence[str]


@dataclass
class Report:
    """Numbers and findings.

    Attributes:
        examples: Examples that could be read.
        numbers: Nested numbers by topic.
        findings: Errors first.
        rows: Encoded examples that keep an answer.
    """

    examples: int
    numbers: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """Number of kinds of error."""
        return sum(finding.error for finding in self.findings)

    def add(self, kind: str, error: bool, message: str, places: Sequence[str]) -> None:
        """Takes note of a finding, if it has any place."""
        if places:
            self.findings.append(Finding(kind, error, message, list(places)))
            self.findings.sort(key=lambda finding: not finding.error)


def examine(files: Sequence[Path], encoder: Encoder) -> Report:
    """Reads, encodes and checks every line.

    Args:
        files: JSON lines.
        encoder: With the tokenizer, template and lengths of the training.

    Raises:
        DataError: An example needs a chat template and there is none.
    """
    examples, broken, empty = _read(files)
    report = Report(len(examples))
    report.add("bad-line", True, "lines that cannot be read", broken)
    report.add("empty-answer", True, "answers that are empty or only spaces", empty)
    silent = [one.source for one in examples if not one.src[-1].strip()]
    report.add("empty-question", False, "questions that are empty or only spaces", silent)
    _duplicates(report, examples)
    if examples:
        rows = [encoder.encode(example) for example in examples]
        report.rows = [row for row in rows if row is not None]
        lost = [example.source for example, row in zip(examples, rows, strict=True) if row is None]
        report.add("no-label", True, "examples of whose answers no token is left at this length", lost)
        _lengths(report, examples, encoder)
        _endings(report, encoder)
        kept = [example for example, row in zip(examples, rows, strict=True) if row is not None]
        _prompts(report, kept, encoder)
    return report


def _read(files: Sequence[Path]) -> tuple[list[Example], list[str], list[str]]:
    """Examples, complaints about lines, and places of empty answers."""
    examples, broken, empty = [], [], []
    for file in files:
        for number, line in read_lines(file):
            where = f"{file}:{number}"
            try:
                examples.append(parse_example(line, where))
            except ValueError as error:
                if str(error) == "'tgt' is empty":
                    empty.append(where)
                else:
                    broken.append(f"{where}: {error}")
    return examples, broken, empty


def _duplicates(report: Report, examples: Sequence[Example]) -> None:
    first: dict[Example, str] = {}
    again = []
    for example in examples:
        origin = first.setdefault(replace(example, source=""), example.source)
        if origin != example.source:
            again.append(f"{example.source} is {origin}")
    report.add("duplicate-example", False, "examples that stand there twice", again)
    answers = Counter(example.tgt[-1].strip() for example in first)
    often = [f"{count} times: {_short(answer)}" for answer, count in answers.most_common() if count >= OFTEN]
    report.add("duplicate-answer", False, f"answers given to {OFTEN} or more different questions", often)


def _lengths(report: Report, examples: Sequence[Example], encoder: Encoder) -> None:
    tokenizer = encoder.tokenizer
    # What no example can reach, so that nothing is cut.
    whole = Encoder(tokenizer, 1 << 40, 1 << 40)
    sources = {example.source: len(whole.prompt(example)) for example in examples}
    full = [len(row.input_ids) for row in map(whole.encode, examples) if row]
    cut = [row.source for row in report.rows if row.truncated]
    report.numbers["tokens"] = {"source": _spread(list(sources.values())), "whole": _spread(full)}
    report.numbers["truncation"] = {
        "src_length": encoder.src_length,
        "max_length": encoder.max_length,
        "source_over_src_length": sum(length > encoder.src_length for length in sources.values()),
        "whole_over_max_length": sum(length > encoder.max_length for length in full),
        "truncated": len(cut),
        "dropped": len(examples) - len(report.rows),
    }
    long = [f"{where} ({length} tokens)" for where, length in sources.items() if length > encoder.src_length]
    report.add("long-source", False, f"sources longer than src_length={encoder.src_length}", long)
    report.add("truncated", False, "examples that are cut to length", cut)
    lengths = [len(row.input_ids) for row in report.rows]
    labels = sum(label != IGNORED for row in report.rows for label in row.labels)
    report.numbers["labels"] = {"tokens": labels, "part_of_all": round(labels / max(sum(lengths), 1), 4)}
    if lengths:
        report.numbers["packing"] = _packing(lengths, encoder.max_length)


def _packing(lengths: Sequence[int], width: int) -> dict[str, Any]:
    """Rows of ``width`` tokens and how full they are, with an example in each and by each value of ``data.packing``."""
    rows = {"none": len(lengths), **{how: len(packer(lengths, width)) for how, packer in PACKERS.items()}}
    return {how: {"rows": count, "fill": round(sum(lengths) / (count * width), 4)} for how, count in rows.items()}


def _endings(report: Report, encoder: Encoder) -> None:
    ends = set(encoder.tokenizer.eos_ids)
    missing, full = [], []
    for row in report.rows:
        if not ends.intersection(_last_answer(row)):
            (full if len(row.input_ids) >= encoder.max_length else missing).append(row.source)
    why = "the tokenizer has no end token" if not ends else "the chat template writes none"
    report.numbers["endings"] = {
        "ended": len(report.rows) - len(missing) - len(full), "cut": len(full), "missing": len(missing)
    }  # fmt: skip
    report.add("missing-eos", True, f"answers without an end token ({why}); the model would not learn to stop", missing)
    report.add("cut-answer", False, f"answers cut at max_length={encoder.max_length}, so without an end token", full)


def _last_answer(row: Row) -> list[int]:
    last = max(i for i, label in enumerate(row.labels) if label != IGNORED)
    first = last
    while first and row.labels[first - 1] != IGNORED:
        first -= 1
    return row.labels[first : last + 1]


def _prompts(report: Report, examples: Sequence[Example], encoder: Encoder) -> None:
    """Whether each row begins with its prompt, and that is what generation writes; only where nothing is cut."""
    differing, elsewhere = [], []
    for example, row in zip(examples, report.rows, strict=True):
        if row.truncated:
            continue
        prompt = encoder.prompt(example)
        asked = conversation(example)
        asked = replace(asked, turns=(*asked.turns[:-1], (asked.turns[-1][0], None)))
        if row.input_ids[: len(prompt)] != prompt:
            differing.append(example.source)
        if prompt_ids(encoder.tokenizer, asked) != prompt:
            elsewhere.append(example.source)
    template = encoder.tokenizer.chat_template
    report.numbers["template"] = {
        "kind": type(template).__name__ if template else None,
        "compared": sum(not row.truncated for row in report.rows),
        "differing": len(set(differing + elsewhere)),
    }
    report.add("template", True, "examples whose training text does not begin with the prompt", differing)
    report.add("generation", True, "examples that generation would ask differently from training", elsewhere)


def _spread(lengths: Sequence[int]) -> dict[str, float]:
    ordered = sorted(lengths)
    if not ordered:
        return {}
    at = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    found: dict[str, float] = {name: ordered[round(part * (len(ordered) - 1))] for name, part in at.items()}
    return {**found, "mean": round(sum(ordered) / len(ordered), 1)}


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
