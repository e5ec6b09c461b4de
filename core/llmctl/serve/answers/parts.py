"""The parts of an answer while it grows: what is said, thoughts between marks, and calls of functions."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmctl.card.answers import CallForm
from llmctl.io.json_object import parse_json

IDS = 9
"""Characters of a call's id: some chat templates take no others."""


@dataclass(frozen=True)
class Call:
    """A call of a function.

    Attributes:
        id: Its id.
        name: The function.
        arguments: Its arguments, as JSON text.
    """

    id: str
    name: str
    arguments: str


@dataclass
class Parts:
    """What an answer grows by."""

    content: str = ""
    thoughts: str = ""
    calls: list[Call] = field(default_factory=list)


class PartsReader:
    """Divides the text of one answer.

    What looks like a call and is none, such as one of a function that there is not, stays content. Spaces around thoughts and
    calls belong to neither.

    Args:
        form: How calls are written; None = there are none.
        functions: Names that may be called.
        marks: Text before and after thoughts; empty = there are none.
        thinking: Whether the answer begins within thoughts, since the prompt has the mark before them.
    """

    def __init__(
        self, form: CallForm | None, functions: Collection[str], marks: Sequence[str], thinking: bool = False
    ) -> None:
        self._form, self._functions, self._marks = form, functions, marks
        self._held, self._spaces = "", ""
        self._state = "thoughts" if thinking else "content"
        self._fresh = True
        self.called = False

    def add(self, text: str) -> Parts:
        """The parts that more text completes."""
        self._held += text
        parts = Parts()
        while self._advance(parts):
            pass
        return parts

    def finish(self) -> Parts:
        """What was held back, at the end of the answer."""
        parts = Parts()
        held, self._held = self._held, ""
        if self._state == "thoughts":
            self._say(parts, held, thoughts=True)
        elif self._state == "call":
            self._call(parts, held, ended=False)
        else:
            self._say(parts, held)
            parts.content += self._spaces if not self._fresh else ""
        return parts

    def _advance(self, parts: Parts) -> bool:
        """Moves on by one mark; False = more text is needed."""
        if self._state == "call":
            end = self._form.end.strip() if self._form else ""
            place = self._held.find(end) if end else -1
            if place < 0:
                return False
            body, self._held = self._held[:place], self._held[place + len(end) :]
            self._state = "content"
            self._call(parts, body, ended=True)
            return True
        if self._state == "thoughts":
            return self._until(parts, [(self._marks[1], "content")], thoughts=True)
        begin = self._form.begin.strip() if self._form else ""
        if self._form and not begin and self._fresh and self._held.lstrip().startswith("{"):
            self._state = "call"
            return False
        marks = [(begin, "call")] * bool(begin) + (
            [(self._marks[0], "thoughts")] if self._marks and self._fresh else []
        )
        return self._until(parts, marks)

    def _until(self, parts: Parts, marks: list[tuple[str, str]], thoughts: bool = False) -> bool:
        """Passes on text before the first mark, and takes the mark; what may be the beginning of one is held back."""
        found = min(
            ((place, mark, state) for mark, state in marks if (place := self._held.find(mark)) >= 0), default=None
        )
        if found:
            place, mark, self._state = found
            self._say(parts, self._held[:place], thoughts, last=True)
            self._held = self._held[place + len(mark) :]
            self._spaces, self._fresh = "", True
            return True
        keep = max((_overlap(self._held, mark) for mark, _ in marks), default=0)
        ready = self._held[: len(self._held) - keep]
        self._held = self._held[len(ready) :]
        self._say(parts, ready, thoughts)
        return False

    def _say(self, parts: Parts, text: str, thoughts: bool = False, last: bool = False) -> None:
        """Passes on text without spaces at its beginning and, where it may be the end, at its end."""
        text = self._spaces + text
        if self._fresh:
            text = text.lstrip()
        said = text.rstrip()
        self._spaces = "" if last else text[len(said) :]
        self._fresh = self._fresh and not said
        if thoughts:
            parts.thoughts += said
        else:
            parts.content += said

    def _call(self, parts: Parts, body: str, ended: bool) -> None:
        """Takes the calls between marks; what is none is content."""
        assert self._form is not None
        calls = _calls(body, self._form, self._functions)
        if calls is None:
            begin, end = self._form.begin.strip(), self._form.end.strip() if ended else ""
            parts.content += begin + body + end
            self._fresh = False
        else:
            self.called = True
            parts.calls += calls


def _calls(body: str, form: CallForm, functions: Collection[str]) -> list[Call] | None:
    """The calls that a text has; None = it is something else."""
    try:
        found = parse_json(body, bounded=True)
    except ValueError:
        return None
    rows = found if form.listed and isinstance(found, list) else [found]
    calls = [_call_of(row, form, functions) for row in rows]
    return [call for call in calls if call] if calls and all(calls) else None


def _call_of(row: Any, form: CallForm, functions: Collection[str]) -> Call | None:
    name = row.get(form.name) if isinstance(row, dict) else None
    arguments = row.get(form.arguments, {}) if isinstance(row, dict) else None
    if not isinstance(name, str) or name not in functions or not isinstance(arguments, dict):
        return None
    return Call(secrets.token_hex(IDS)[:IDS], name, json.dumps(arguments, ensure_ascii=False))


def _overlap(text: str, mark: str) -> int:
    """How many of the last characters of a text may begin a mark."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-size:])), 0)
