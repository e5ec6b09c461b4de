"""Checks of fine-tuning data as the model sees it: lines, lengths, labels, EOS, templates, duplicates.

An error is what would make training go wrong: a line that cannot be read, an answer whose tokens were all cut, an answer
without EOS, a prompt that generation would encode differently. Everything else is a warning or a statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llmctl.data.doctor.report import DoctorReport, Lines, add_duplicates, add_endings, add_lines, encode_each, spread
from llmctl.data.packing import PACKERS
from llmctl.data.sft.encoding import IGNORE_INDEX, Encoder, prompt_ids
from llmctl.data.sft.examples import Example


def examine(read: Lines, encoder: Encoder, progress: Callable[[int], Any] | None = None) -> DoctorReport:
    """Encodes and checks every line.

    Args:
        read: The lines, each parsed.
        encoder: Encoder with the tokenizer, chat template and lengths of training.
        progress: Called with 1 for each example.

    Raises:
        DataError: An example needs a chat template and there is none.
    """
    examples = read.examples
    report = DoctorReport(len(examples))
    add_lines(report, read)
    no_prompt = [example.source for example in examples if not example.conversation.question.strip()]
    report.add("empty-question", False, "empty prompts", no_prompt)
    talks = ((row.source, repr(row.conversation), row.conversation.messages[-1].text) for row in examples)
    add_duplicates(report, talks)
    examples, rows = encode_each(report, examples, encoder.encode, progress)
    if examples:
        report.rows = [row for row in rows if row is not None]
        dropped = [example.source for example, row in zip(examples, rows, strict=True) if row is None]
        report.add("no-label", True, "examples whose answers are truncated to nothing", dropped)
        _lengths(report, examples, encoder)
        full = {row.source for row in report.rows if len(row.input_ids) >= encoder.max_length}
        add_endings(report, set(encoder.tokenizer.eos_ids), full, f"max_length={encoder.max_length}")
        kept = [example for example, row in zip(examples, rows, strict=True) if row is not None]
        _prompts(report, kept, encoder)
    return report


def _lengths(report: DoctorReport, examples: Sequence[Example], encoder: Encoder) -> None:
    tokenizer = encoder.tokenizer
    # Lengths that no example reaches, so nothing is truncated.
    whole = Encoder(tokenizer, 1 << 40, 1 << 40)
    sources = {example.source: len(whole.prompt(example)) for example in examples}
    full = [len(row.input_ids) for row in map(whole.encode, examples) if row]
    cut = [row.source for row in report.rows if row.truncated]
    report.numbers["tokens"] = {"source": spread(list(sources.values())), "whole": spread(full)}
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
