"""Files of prompts: a JSON object per line with ``src``, and the rows of their answers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.data.sft.examples import MAX_LISTED, parse_object, read_lines
from llmctl.errors import DataError
from llmctl.infer.text.generator import TextGenerator, TextOutput, TextRequest
from llmctl.tokenizers.conversation import Conversation


@dataclass(frozen=True)
class PromptLine:
    """A line of a file.

    Attributes:
        conversation: What is to be continued.
        row: The line's object.
        source: File and line number.
    """

    conversation: Conversation
    row: dict[str, Any]
    source: str


def read_prompts(path: Path, system: str | None = None) -> list[PromptLine]:
    """The prompts of a file of JSON lines with ``src``; answers of earlier turns are taken from ``tgt``.

    Args:
        path: The file.
        system: System text of lines that have none.

    Raises:
        DataError: The file holds no prompts, or lines are broken: all are listed.
    """
    lines, problems = [], []
    for number, text in read_lines(path):
        source = f"{path}:{number}"
        try:
            row = parse_object(text)
            lines.append(PromptLine(_conversation(row, system), row, source))
        except ValueError as error:
            problems.append(f"{source}: {error}")
    if problems:
        more = f"\n  and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        raise DataError("\n  ".join([f"{len(problems)} lines cannot be used:", *problems[:MAX_LISTED]]) + more)
    if not lines:
        raise DataError(f"{path} holds no prompts")
    return lines


def answer_rows(
    generator: TextGenerator, lines: Sequence[PromptLine], requests: Sequence[TextRequest], done: Collection[int] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The index of each line and its row, in the order in which answers end.

    A row has ``src`` and ``tgt`` as they were read, ``output``, what else was asked for, and ``error`` if it failed.

    Args:
        generator: Answers.
        lines: The lines.
        requests: The request of each line.
        done: Indices of lines that have been answered already.
    """
    left = [index for index in range(len(lines)) if index not in done]
    for number, output in generator.outputs([requests[index] for index in left]):
        yield left[number], answer_row(lines[left[number]].row, output)


def answer_row(line: Mapping[str, Any], output: TextOutput) -> dict[str, Any]:
    """What is written for an answer.

    Args:
        line: The line's object.
        output: The answer.
    """
    row = {key: line[key] for key in ("src", "tgt", "adapter") if key in line}
    row["output"] = output.text
    if output.others:
        row["others"] = list(output.others)
    if output.logprobs:
        row["logprobs"] = [
            {"token": scored.token, "logprob": scored.logprob, "top": [list(pair) for pair in scored.top]}
            for scored in output.logprobs
        ]
    return row | ({"error": output.error} if output.finish_reason == "error" else {})


def _conversation(row: dict[str, Any], system: str | None) -> Conversation:
    if "src" not in row:
        raise ValueError("no 'src'")
    asked, answered = (_texts(key, row.get(key, [])) for key in ("src", "tgt"))
    if not asked:
        raise ValueError("'src' is an empty list")
    if len(answered) < len(asked) - 1:
        raise ValueError(f"'src' has {len(asked)} turns, so 'tgt' must have the first {len(asked) - 1} answers")
    context = row.get("context") or {}
    if not isinstance(context, dict) or not isinstance(context.get("system", ""), str):
        raise ValueError("'context' must be an object whose 'system' is text")
    earlier = zip(asked[:-1], answered, strict=False)
    return Conversation((*earlier, (asked[-1], None)), context.get("system", system))


def _texts(key: str, value: Any) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key!r} must be text or a list of texts")
    return texts
