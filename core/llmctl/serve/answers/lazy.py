"""Answers that are free until the model begins a call, which is bound to a grammar up to its end.

llama.cpp calls such grammars lazy, vLLM structural tags. While nothing is bound, no mask is computed: only the text of each token is
looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from llmctl.card.answers import CallForm
from llmctl.infer.sampling.constraint import Constraint, Matcher, Words

KEPT = 64
"""Bytes before the next token in which an opening may have begun."""


@dataclass(frozen=True, kw_only=True)
class LazyCalls(Constraint):
    """The constraint.

    Attributes:
        form: How calls are written.
        call: What follows the opening of a call, up to its end.
        most: Calls of an answer; after the last one it ends.
        thoughts: Text before and after thoughts, in which nothing is a call; empty = there are none.
        thinking: Whether the answer begins within thoughts.
        text_of: What a token adds to the text.
        tokens_of: Tokens that write a text, in any division; None = there are none.
    """

    form: CallForm
    call: Constraint
    most: int
    thoughts: Sequence[str]
    thinking: bool
    text_of: Callable[[int], bytes]
    tokens_of: Callable[[bytes], Sequence[int] | None]

    def matcher(self) -> Matcher:
        """As ``Constraint``."""
        return _LazyMatcher(self)

    @cached_property
    def marks(self) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
        """What to look for in free text and in thoughts. Thoughts come first, as do calls of a form without a mark."""
        call = re.escape(self.form.begin.strip()) or rf'\A\{{\s*"{self.form.name}"\s*:\s*"'
        begin, end = map(re.escape, self.thoughts or ("", ""))
        before = rf"|\A{begin}" if begin else ""
        return re.compile(f"(?P<call>{call}){before}".encode()), re.compile(end.encode())


class _Place(NamedTuple):
    """Where an answer is.

    Attributes:
        seen: Its last bytes; the first one is no space.
        thinking: Whether they are thoughts.
        calls: How many calls have ended.
        call: Follows the call that has begun; None = the text is free.
        done: Whether nothing may follow.
    """

    seen: bytes = b""
    thinking: bool = False
    calls: int = 0
    call: Matcher | None = None
    done: bool = False


class _LazyMatcher(Matcher):
    """Follows one answer.

    Args:
        of: Its constraint.
    """

    def __init__(self, of: LazyCalls) -> None:
        self._of, self._place = of, _Place(thinking=of.thinking)
        self._before: list[_Place] = []

    def allowed(self) -> Words | None:
        """As ``Matcher``."""
        return self._place.call.allowed() if self._place.call else None

    def prepare(self) -> None:
        """As ``Matcher``."""
        self._before = []
        if self._place.call:
            self._place.call.prepare()

    def accept(self, tokens: Sequence[int]) -> int:
        """As ``Matcher``."""
        for count, token in enumerate(tokens):
            place = self._place
            if place.done or (place.call and not place.call.accept([token])):
                return count
            self._before.append(place)
            self._place = self._inside(place) if place.call else self._free(place, self._of.text_of(token))
        return len(tokens)

    def undo(self, count: int) -> None:
        """As ``Matcher``."""
        for _ in range(count):
            self._place = self._before.pop()
            if self._place.call:
                self._place.call.undo(1)

    @property
    def complete(self) -> bool:
        """As ``Matcher``."""
        return self._place.done

    def _free(self, place: _Place, text: bytes) -> _Place:
        """Where free text leads to."""
        seen, thinking = place.seen + text if place.seen else text.lstrip(), place.thinking
        while found := self._of.marks[thinking].search(seen):
            rest = seen[found.end() :]
            if found.lastgroup != "call":
                thinking = not thinking
            elif call := self._begun(rest):
                return self._inside(place._replace(seen=b"", call=call))
            seen = rest.lstrip()
        if len(seen) > 2 * KEPT:
            seen = b"." + seen[-KEPT:]  # what comes next is not at the start of the text
        return _Place(seen, thinking, place.calls)

    def _begun(self, text: bytes) -> Matcher | None:
        """Follows the call whose opening is before a text; None = it is none, since a token has written on beyond the opening."""
        call, tokens = self._of.call.matcher(), self._of.tokens_of(text)
        return call if tokens is not None and call.accept(tokens) == len(tokens) else None

    def _inside(self, place: _Place) -> _Place:
        """Where a token of a call leads to: out of it, if it has ended."""
        assert place.call is not None
        if not place.call.complete:
            return place
        calls = place.calls + 1
        return _Place(calls=calls, done=calls == self._of.most or not self._of.form.end)
