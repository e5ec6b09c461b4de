"""The parts of an answer while it grows: what is said, thoughts between marks, and calls of functions."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmctl.card.answers import CallForm
from llmctl.io.json_object import parse_json

IDS = 9
"""Characters of a call's id: some chat templates take no others."""

Kind = Literal["thoughts", "text", "call"]


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
    arguments: str = ""


@dataclass(slots=True)
class Part:
    """What an answer grows by.

    Attributes:
        kind: What it is.
        text: Its text; of a call, the next piece of its arguments.
        call: The call that begins here; None = none does.
    """

    kind: Kind
    text: str = ""
    call: Call | None = None


def calls_of(parts: Iterable[Part]) -> list[Call]:
    """The calls of an answer with all of their arguments."""
    found: list[tuple[Call, list[str]]] = []
    for part in parts:
        if part.call is not None:
            found.append((part.call, []))
        if part.kind == "call":
            found[-1][1].append(part.text)
    return [Call(call.id, call.name, "".join(texts)) for call, texts in found]


class PartsReader:
    """Divides the text of one answer.

    A call begins once its function's name and the first brace of its arguments are there; the arguments follow as they are written.
    What looks like a call and is none, such as one of a function that there is not, stays text. Spaces around thoughts and
    calls belong to neither.

    Args:
        form: How calls are written; None = there are none.
        functions: Names that may be called.
        marks: Text before and after thoughts; empty = there are none.
        thinking: Whether the answer begins within thoughts, since the prompt has the mark before them.

    Attributes:
        cut: Whether the answer has ended within the arguments of a call.
    """

    def __init__(
        self, form: CallForm | None, functions: Collection[str], marks: Sequence[str], thinking: bool = False
    ) -> None:
        self._form, self._functions, self._marks = form, functions, marks
        self._begin, self._end = (form.begin.strip(), form.end.strip()) if form else ("", "")
        self._head = re.compile(_head(form)) if form else None
        self._held, self._spaces = "", ""
        self._state = self._thoughts if thinking else self._text
        self._fresh = True
        self._parts: list[Part] = []
        self._braces = Braces()
        self.cut = False

    def add(self, text: str) -> list[Part]:
        """The parts that more text completes."""
        self._held += text
        while self._state():
            pass
        return self._given()

    def finish(self) -> list[Part]:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, ""
        if self._state == self._thoughts:
            self._say("thoughts", held)
        elif self._state == self._call:
            self._whole_call(held, ended=False)
        elif self._state == self._arguments:
            self.cut = True
            self._give(Part("call", held))
        elif self._state == self._text:
            self._say("text", held)
            self._give(Part("text", self._spaces if not self._fresh else ""))
        return self._given()

    def _given(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts

    def _give(self, part: Part) -> None:
        """Adds a part, to the last one if it is of the same kind."""
        if self._parts and self._parts[-1].kind == part.kind and part.call is None:
            self._parts[-1].text += part.text
        elif part.text or part.call is not None:
            self._parts.append(part)

    # States: each moves on by one mark; False = more text is needed.

    def _thoughts(self) -> bool:
        return self._until("thoughts", [(self._marks[1], self._text)])

    def _text(self) -> bool:
        start = self._held.lstrip() if self._fresh else ""
        if self._marks and self._fresh:  # thoughts come first
            if start.startswith(self._marks[0]):
                self._held, self._state = start[len(self._marks[0]) :], self._thoughts
                return True
            if self._marks[0].startswith(start):
                return False
        if self._form and not self._begin and start.startswith("{"):
            self._state = self._call
            return True
        return self._until("text", [(self._begin, self._call)] if self._begin else [])

    def _call(self) -> bool:
        """Between the mark of a call and the arguments of a function that there is."""
        assert self._head is not None
        head = self._head.match(self._held)
        if head and head["name"] in self._functions:
            self._held = self._held[head.end() :]
            self._give(Part("call", call=Call(secrets.token_hex(IDS)[:IDS], head["name"])))
            self._braces, self._state = Braces("{"), self._arguments
            return True
        place = self._held.find(self._end) if self._end else -1
        if place < 0:
            return False
        body, self._held = self._held[:place], self._held[place + len(self._end) :]
        self._state = self._text
        self._whole_call(body, ended=True)
        return True

    def _arguments(self) -> bool:
        """Up to the brace that ends the arguments; where they are no JSON, up to the mark that ends the call."""
        if self._braces.broken:
            return self._broken()
        size = self._braces.add(self._held, 1)
        self._give(Part("call", self._held[:size]))
        self._held = self._held[size:]
        if self._braces.depth == 1:
            self._state = self._rest
            return True
        return self._braces.broken

    def _broken(self) -> bool:
        place = self._held.find(self._end) if self._end else -1
        if place >= 0:
            self._give(Part("call", self._held[:place]))
            self._held, self._state = self._held[place + len(self._end) :], self._text
            return True
        size = len(self._held) - _overlap(self._held, self._end)
        self._give(Part("call", self._held[:size]))
        self._held = self._held[size:]
        return False

    def _rest(self) -> bool:
        """Up to the brace that ends the call: keys that nobody reads."""
        self._held = self._held[self._braces.add(self._held, 0) :]
        if self._braces.depth and not self._braces.broken:
            return False
        self._state = self._after
        return True

    def _after(self) -> bool:
        """Between a call and the next one, or the mark after calls."""
        assert self._form is not None
        self._held = self._held.lstrip()
        ends = [("]", self._text), (",", self._call)] if self._form.listed else [(self._end, self._text)]
        for mark, state in ends:
            if self._held.startswith(mark):
                self._held, self._state = self._held[len(mark) :], state
                return True
            if mark.startswith(self._held):
                return False
        self._state = self._text
        return True

    def _until(self, kind: Kind, marks: list[tuple[str, Any]]) -> bool:
        """Passes on text before the first mark, and takes the mark; what may be the beginning of one is held back."""
        found = min(
            ((place, at) for at, (mark, _) in enumerate(marks) if (place := self._held.find(mark)) >= 0), default=None
        )
        if found:
            place, (mark, self._state) = found[0], marks[found[1]]
            self._say(kind, self._held[:place], last=True)
            self._held = self._held[place + len(mark) :]
            self._spaces, self._fresh = "", True
            return True
        keep = max((_overlap(self._held, mark) for mark, _ in marks), default=0)
        ready = self._held[: len(self._held) - keep]
        self._held = self._held[len(ready) :]
        self._say(kind, ready)
        return False

    def _say(self, kind: Kind, text: str, last: bool = False) -> None:
        """Passes on text without spaces at its beginning and, where it may be the end, at its end."""
        text = self._spaces + text
        if self._fresh:
            text = text.lstrip()
        said = text.rstrip()
        self._spaces = "" if last else text[len(said) :]
        self._fresh = self._fresh and not said
        self._give(Part(kind, said))

    def _whole_call(self, body: str, ended: bool) -> None:
        """Takes the calls between marks; what is none is text."""
        assert self._form is not None
        calls = _calls(body, self._form, self._functions)
        if calls is None:
            self._give(Part("text", self._begin + body + (self._end if ended else "")))
            self._fresh = False
        for call in calls or ():
            self._give(Part("call", call.arguments, Call(call.id, call.name)))


class Braces:
    """Follows the braces, brackets and texts of JSON.

    Args:
        opened: Braces and brackets before the text.

    Attributes:
        broken: Whether the text is no JSON: a bracket closes a brace, or a text has a line break.
    """

    def __init__(self, opened: str = "") -> None:
        self._open = [*opened]
        self._in_text = self._escaped = self.broken = False

    @property
    def depth(self) -> int:
        """How many braces and brackets are open."""
        return len(self._open)

    def add(self, text: str, depth: int) -> int:
        """How many characters there are up to the one that closes to a depth; all of them = none does, or the text is no JSON.

        Args:
            text: What follows.
            depth: Where to stop.
        """
        for place, letter in enumerate(text):
            if self._in_text:
                self.broken = letter < " "
                if self._escaped or letter == "\\":
                    self._escaped = not self._escaped
                else:
                    self._in_text = letter != '"'
            elif letter == '"':
                self._in_text = True
            elif letter in "{[":
                self._open.append(letter)
            elif letter in "}]" and self._open[-1] + letter in ("{}", "[]"):
                self._open.pop()
                if len(self._open) == depth:
                    return place + 1
            elif letter in "}]":
                self.broken = True
            if self.broken:
                return place
        return len(text)


def _head(form: CallForm) -> str:
    """An expression for a call up to its arguments, if their function comes first."""
    key = r'"{}"\s*:\s*'.format
    begin = r"\s*(\[\s*)?\{\s*" if form.listed else r"\s*\{\s*"
    return begin + key(form.name) + r'"(?P<name>[\w.-]+)"\s*,\s*' + key(form.arguments) + r"(?=\{)"


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
