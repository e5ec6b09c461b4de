"""Files of prompts, in any format of examples with or without answers, and the rows of their answers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.data.files import records
from llmctl.data.formats import PROMPT_KEYS, asked, system_of
from llmctl.data.rows import parse_object
from llmctl.data.sft.examples import listing
from llmctl.errors import DataError
from llmctl.infer.text.generator import TextGenerator, TextOutput, TextRequest
from llmctl.tokenizers.conversation import Conversation, Message


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
    """The prompts of a file: of ``src`` with the earlier answers of ``tgt``, or of another format without its last answer.

    Args:
        path: The file.
        system: System text of lines that have none.

    Raises:
        DataError: The file holds no prompts, or lines are broken: all are listed.
    """
    lines, problems = [], []
    for source, text in records(path):
        try:
            row = parse_object(text)
            lines.append(PromptLine(_conversation(row, system), row, source))
        except ValueError as error:
            problems.append((source, str(error)))
    if problems:
        raise DataError(listing(problems, "lines cannot be used:"))
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
    """What is written for an answer; ``output`` is None where there is none.

    Args:
        line: The line's object.
        output: The answer.
    """
    row = {key: line[key] for key in ("src", "tgt", *PROMPT_KEYS, "adapter") if key in line}
    failed = output.finish_reason == "error"
    row["output"] = None if failed and not output.text else output.text
    if output.others:
        row["others"] = list(output.others)
    if output.logprobs:
        row["logprobs"] = [
            {"token": scored.token, "logprob": scored.logprob, "top": [list(pair) for pair in scored.top]}
            for scored in output.logprobs
        ]
    return row | ({"error": output.error} if failed else {})


def _conversation(row: dict[str, Any], system: str | None) -> Conversation:
    chat = _turns(row) if "src" in row else asked(row)
    if system is None or (chat.messages and chat.messages[0].role == "system"):
        return chat
    return Conversation(messages=[Message("system", system), *chat.messages], tools=chat.tools)


def _turns(row: dict[str, Any]) -> Conversation:
    src, tgt = (_texts(key, row.get(key, [])) for key in ("src", "tgt"))
    if not src:
        raise ValueError("'src' is an empty list")
    if len(tgt) < len(src) - 1:
        raise ValueError(f"'src' has {len(src)} turns, so 'tgt' must have the first {len(src) - 1} answers")
    return Conversation((*zip(src[:-1], tgt, strict=False), (src[-1], None)), system_of(row))


def _texts(key: str, value: Any) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key!r} must be text or a list of texts")
    return texts
