"""Checks of preference data as the model sees it: both answers of each pair, their lengths, EOS and truncation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llmctl.data.doctor.report import DoctorReport, Lines, add_duplicates, add_endings, add_lines, encode_each, spread
from llmctl.data.preference.encoding import Pair, PairEncoder
from llmctl.data.sft.encoding import IGNORE_INDEX, EncodedExample


def examine(read: Lines, encoder: PairEncoder, progress: Callable[[int], Any] | None = None) -> DoctorReport:
    """Encodes and checks every pair; the rows of the report are the two answers of each, with their prompts.

    Args:
        read: The lines, each parsed.
        encoder: Encoder with the tokenizer, chat template and lengths of training.
        progress: Called with 1 for each pair.

    Raises:
        DataError: A pair needs a chat template and there is none.
    """
    pairs = read.examples
    report = DoctorReport(len(pairs))
    add_lines(report, read)
    report.add("empty-question", False, "empty prompts", [pair.source for pair in pairs if not pair.question.strip()])
    talks = ((pair.source, repr((pair.prompt, pair.chosen, pair.rejected)), pair.chosen.text) for pair in pairs)
    add_duplicates(report, talks)
    pairs, found = encode_each(report, pairs, encoder.encode, progress)
    if not pairs:
        return report
    kept = [pair for pair in found if pair is not None]
    lost = [pair.source for pair, row in zip(pairs, found, strict=True) if row is None]
    report.rows = [row for pair in kept for row in _rows(pair)]
    report.add("no-label", True, "pairs whose answers are empty or the same within the lengths", lost)
    _lengths(report, kept, encoder)
    cut = {row.source for pair in kept if pair.truncated for row in _rows(pair)}
    add_endings(report, set(encoder.tokenizer.eos_ids), cut, f"max_length={encoder.max_length}")
    return report


def _rows(pair: Pair) -> Iterator[EncodedExample]:
    for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        ids = [*pair.prompt, *answer]
        labels = [*[IGNORE_INDEX] * (len(pair.prompt) - 1), *answer, IGNORE_INDEX]
        yield EncodedExample(ids, labels, f"{pair.source} ({name})", pair.truncated)


def _lengths(report: DoctorReport, pairs: list[Pair], encoder: PairEncoder) -> None:
    parts = {name: [len(getattr(pair, name)) for pair in pairs] for name in ("prompt", "chosen", "rejected")}
    report.numbers["tokens"] = {name: spread(lengths) for name, lengths in parts.items()}
    longer = sum(chosen > rejected for chosen, rejected in zip(parts["chosen"], parts["rejected"], strict=True))
    cut = [pair.source for pair in pairs if pair.truncated]
    shortened = [pair.source for pair in pairs if pair.dropped_turns]
    report.numbers["truncation"] = {
        "max_prompt_length": encoder.max_prompt_length,
        "max_length": encoder.max_length,
        "truncated": len(cut),
        "shortened": len(shortened),
        "dropped": report.examples - len(pairs),
    }
    report.numbers["answers"] = {"chosen_is_longer": round(longer / max(len(pairs), 1), 4)}
    report.add("truncated", False, "truncated pairs", cut)
    report.add("shortened", False, "pairs without their oldest turns", shortened)
