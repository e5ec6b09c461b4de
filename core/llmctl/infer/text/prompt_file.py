"""Files of prompts, in any format of examples with or without answers, and the rows of their answers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmctl.data.files import records
from llmctl.data.formats import PROMPT_KEYS, PROMPTS, Problems, Reader
from llmctl.errors import DataError
from llmctl.infer.text.generator import TextGenerator, TextOutput, TextRequest
from llmctl.io.progress import Progress
from llmctl.tokenizers.conversation import Conversation, Message

WAY_OUT = (
    "correct or remove them; keys of other names are read with --column theirs=ours, --format names one format, and docs/data.md "
    "shows a line of each"
)


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


def read_prompts(
    path: Path, system: str | None = None, reader: Reader[Conversation] | None = None, name: str | None = None
) -> list[PromptLine]:
    """The prompts of a file: of ``src`` with the earlier answers of ``tgt``, or of another format without its last answer.

    Args:
        path: The file.
        system: System text of lines that have none.
        reader: Parses lines and counts what it saw.
        name: Name of the file in messages, if not its path.

    Raises:
        DataError: The file holds no prompts, or lines are broken: each kind of mistake is named once.
    """
    reader, lines, problems = reader or Reader(PROMPTS), [], Problems()
    with Progress(f"reading {name or path}", path.stat().st_size) as progress:
        for source, text in records(path, progress, name):
            try:
                chat, row = reader.row(text, source)
                lines.append(PromptLine(_with_system(chat, system), row, source))
            except ValueError as error:
                problems.add(source, str(error))
    if problems:
        raise DataError(problems.message("lines cannot be used:", WAY_OUT))
    if not lines:
        raise DataError(f"{name or path} holds no prompts")
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


def _with_system(chat: Conversation, system: str | None) -> Conversation:
    if system is None or (chat.messages and chat.messages[0].role == "system"):
        return chat
    return replace(chat, messages=(Message("system", system), *chat.messages))
