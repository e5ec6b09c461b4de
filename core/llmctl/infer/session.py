"""Files of prompts, and conversations with a person."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.data.sft.encoding import prompt_ids
from llmctl.data.sft.examples import LISTED, parse_object, read_lines
from llmctl.errors import ConfigError, DataError
from llmctl.infer.text import Answer, Ask, Writer, check_lengths
from llmctl.tokenizers.base import Conversation


@dataclass(frozen=True)
class Question:
    """A line of a file: the conversation to continue, the line as it was read, and where it stands."""

    conversation: Conversation
    row: dict[str, Any]
    source: str


def read_questions(path: Path, system: str | None = None) -> list[Question]:
    """The questions in a file of JSON lines with ``src``; earlier turns' answers are taken from ``tgt``.

    Args:
        path: The file.
        system: System text of lines that give none.

    Raises:
        DataError: The file holds no questions, or lines are broken: all are listed.
    """
    questions, problems = [], []
    for number, text in read_lines(path):
        source = f"{path}:{number}"
        try:
            row = parse_object(text)
            questions.append(Question(_conversation(row, system), row, source))
        except ValueError as error:
            problems.append(f"{source}: {error}")
    if problems:
        more = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise DataError("\n  ".join([f"{len(problems)} lines cannot be used:", *problems[:LISTED]]) + more)
    if not questions:
        raise DataError(f"{path} holds no questions")
    return questions


def answer_rows(
    writer: Writer, questions: Sequence[Question], asks: Sequence[Ask], known: Collection[int] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The place of each question and its row, in the order in which answers end.

    A row has what was read of ``src`` and ``tgt``, ``output``, what was asked for beside it, and ``error`` if it failed.

    Args:
        writer: Answers.
        questions: The questions.
        asks: What is asked of the model for each.
        known: Places that have been answered already.
    """
    left = [place for place in range(len(questions)) if place not in known]
    for number, answer in writer.answers([asks[place] for place in left]):
        yield left[number], answer_row(questions[left[number]].row, answer)


def answer_row(question: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
    """What is written for an answer."""
    row = {key: question[key] for key in ("src", "tgt", "adapter") if key in question}
    row["output"] = answer.text
    if answer.others:
        row["others"] = list(answer.others)
    if answer.logprobs:
        row["logprobs"] = [
            {"token": found.token, "logprob": found.logprob, "top": [list(pair) for pair in found.top]}
            for found in answer.logprobs
        ]
    return row | ({"error": answer.error} if answer.finish_reason == "error" else {})


class Chat:
    """A conversation with a person: ``/reset`` forgets it, ``/quit`` ends it. When it grows too long for the model, its
    oldest turns are left out.

    Args:
        writer: Answers; its tokenizer's chat template writes the turns.
        system: System text, if any.
        ask: Returns the next line, or None at the end of input.
        show: Called with every piece of an answer, and a line break after it.
    """

    def __init__(
        self, writer: Writer, system: str | None, ask: Callable[[], str | None], show: Callable[[str], None]
    ) -> None:
        self.writer, self.system, self.ask, self.show = writer, system, ask, show
        self.turns: list[tuple[str, str | None]] = []

    def run(self) -> None:
        """Answers until the person leaves."""
        while (line := self.ask()) is not None:
            text = line.strip()
            if text in ("/quit", "/exit"):
                return
            if text == "/reset":
                self.turns = []
            elif text:
                self._turn(text)

    def _turn(self, text: str) -> None:
        if self.writer.tokenizer.chat_template is None:
            self.turns = []
        try:
            prompt = self._prompt(text)
        except ConfigError as error:
            self.show(f"{error}\n")
            return
        answer = self.writer.answer([prompt], lambda _, piece: self.show(piece), first=len(self.turns))[0]
        self.show("\n" if answer.finish_reason != "error" else f"{answer.error}\n")
        if answer.finish_reason != "error":
            self.turns.append((text, answer.text))

    def _prompt(self, text: str) -> list[int]:
        """Token ids of the conversation; the oldest turns are forgotten while there is no room for an answer."""
        while True:
            asked = Conversation((*self.turns, (text, None)), self.system)
            prompt = prompt_ids(self.writer.tokenizer, asked)
            try:
                check_lengths([prompt], self.writer.options, self.writer.max_positions, ["the message"])
                return prompt
            except ConfigError:
                if not self.turns:
                    raise
                del self.turns[0]


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
