"""Checks of fine-tuning data as the model sees it: lines, lengths, labels, EOS, templates, duplicates.

An error is what would make training go wrong: a line that cannot be read, an answer whose tokens were all cut, an answer
without EOS, a prompt that generation would encode differently. Everything else is a warning or a statistic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmctl.data.files import records
from llmctl.data.packing import PACKERS
from llmctl.data.sft.encoding import IGNORE_INDEX, EncodedExample, Encoder, prompt_ids
from llmctl.data.sft.examples import Example, ExampleReader

MANY_EQUAL = 3
"""Number of prompts with the same answer that is worth a warning."""

EMPTY_ANSWERS = ("'tgt' is empty", "'output' is empty", "'completion' is empty", "an answer is empty")


@dataclass(frozen=True)
class Finding:
    """An error or a warning.

    Attributes:
        kind: Name of the check.
        error: Whether it is an error, not a warning.
        message: What was found.
        places: ``file:line`` of every occurrence.
    """

    kind: str
    error: bool
    message: str
    places: Sequence[str]


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

    def add(self, kind: str, error: bool, message: str, places: Sequence[str]) -> None:
        """Adds a finding if it occurs anywhere."""
        if places:
            self.findings.append(Finding(kind, error, message, list(places)))
            self.findings.sort(key=lambda finding: not finding.error)


def examine(files: Sequence[Path], encoder: Encoder) -> DoctorReport:
    """Reads, encodes and checks every line.

    Args:
        files: Files of examples.
        encoder: Encoder with the tokenizer, chat template and lengths of training.

    Raises:
        DataError: An example needs a chat template and there is none.
    """
    reader = ExampleReader()
    examples, broken, empty = _read(files, reader)
    report = DoctorReport(len(examples))
    report.numbers["formats"] = dict(reader.found)
    for key, places in reader.unread.items():
        report.add("unread-key", False, f"lines whose key {key!r} holds text that is not read", places)
    report.add("bad-line", True, "lines that are not valid", broken)
    report.add("empty-answer", True, "empty answers", empty)
    no_prompt = [example.source for example in examples if not example.conversation.question.strip()]
    report.add("empty-question", False, "empty prompts", no_prompt)
    _duplicates(report, examples)
    if examples:
        rows = [encoder.encode(example) for example in examples]
        report.rows = [row for row in rows if row is not None]
        dropped = [example.source for example, row in zip(examples, rows, strict=True) if row is None]
        report.add("no-label", True, "examples whose answers are truncated to nothing", dropped)
        _lengths(report, examples, encoder)
        _endings(report, encoder)
        kept = [example for example, row in zip(examples, rows, strict=True) if row is not None]
        _prompts(report, kept, encoder)
    return report


def _read(files: Sequence[Path], reader: ExampleReader) -> tuple[list[Example], list[str], list[str]]:
    """Valid examples, errors of the other lines, and places of empty answers."""
    examples, broken, empty = [], [], []
    for file in files:
        for where, line in records(file):
            try:
                examples.append(reader(line, where))
            except ValueError as error:
                if str(error) in EMPTY_ANSWERS:
                    empty.append(where)
                else:
                    broken.append(f"{where}: {error}")
    return examples, broken, empty


def _duplicates(report: DoctorReport, examples: Sequence[Example]) -> None:
    first: dict[str, Example] = {}
    repeated = []
    for example in examples:
        origin = first.setdefault(repr(example.conversation), example)
        if origin is not example:
            repeated.append(f"{example.source} is {origin.source}")
    report.add("duplicate-example", False, "duplicate examples", repeated)
    answers = Counter(example.conversation.messages[-1].text.strip() for example in first.values())
    shared = [f"{count} times: {_short(answer)}" for answer, count in answers.most_common() if count >= MANY_EQUAL]
    report.add("duplicate-answer", False, f"answers that {MANY_EQUAL} or more different prompts share", shared)


def _lengths(report: DoctorReport, examples: Sequence[Example], encoder: Encoder) -> None:
    tokenizer = encoder.tokenizer
    # Lengths that no example reaches, so nothing is truncated.
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
    report.add("long-source", False, f"prompts longer than src_length={encoder.src_length}", long)
    report.add("truncated", False, "truncated examples", cut)
    lengths = [len(row.input_ids) for row in report.rows]
    labels = sum(label != IGNORE_INDEX for row in report.rows for label in row.labels)
    report.numbers["labels"] = {"tokens": labels, "part_of_all": round(labels / max(sum(lengths), 1), 4)}
    if lengths:
        report.numbers["packing"] = _packing(lengths, encoder.max_length)


def _packing(lengths: Sequence[int], width: int) -> dict[str, Any]:
    """Number of rows of ``width`` tokens and how full they are, without packing and for each value of ``data.packing``."""
    rows = {"none": len(lengths), **{how: len(packer(lengths, width)) for how, packer in PACKERS.items()}}
    return {how: {"rows": count, "fill": round(sum(lengths) / (count * width), 4)} for how, count in rows.items()}


def _endings(report: DoctorReport, encoder: Encoder) -> None:
    ends = set(encoder.tokenizer.eos_ids)
    missing, full = [], []
    for row in report.rows:
        if not ends.intersection(_last_answer(row)):
            (full if len(row.input_ids) >= encoder.max_length else missing).append(row.source)
    why = "the tokenizer has none" if not ends else "the chat template adds none"
    report.numbers["endings"] = {
        "ended": len(report.rows) - len(missing) - len(full), "cut": len(full), "missing": len(missing)
    }  # fmt: skip
    report.add("missing-eos", True, f"answers without EOS token ({why}); the model would not learn to stop", missing)
    report.add("cut-answer", False, f"answers truncated to max_length={encoder.max_length}, so without EOS token", full)


def _last_answer(row: EncodedExample) -> list[int]:
    last = max(i for i, label in enumerate(row.labels) if label != IGNORE_INDEX)
    first = last
    while first and row.labels[first - 1] != IGNORE_INDEX:
        first -= 1
    return row.labels[first : last + 1]


def _prompts(report: DoctorReport, examples: Sequence[Example], encoder: Encoder) -> None:
    """Checks that each row starts with its prompt, and that generation encodes the same; skips truncated rows."""
    differing, other_in_generation = [], []
    for example, row in zip(examples, report.rows, strict=True):
        if row.truncated:
            continue
        prompt = encoder.prompt(example)
        if row.input_ids[: len(prompt)] != prompt:
            differing.append(example.source)
        if prompt_ids(encoder.tokenizer, example.conversation) != prompt:
            other_in_generation.append(example.source)
    template = encoder.tokenizer.chat_template
    report.numbers["template"] = {
        "kind": type(template).__name__ if template else None,
        "compared": sum(not row.truncated for row in report.rows),
        "differing": len(set(differing + other_in_generation)),
    }
    report.add("template", True, "examples whose training tokens do not start with those of the prompt", differing)
    report.add(
        "generation",
        True,
        "examples whose prompt is encoded differently in generation and in training",
        other_in_generation,
    )


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
