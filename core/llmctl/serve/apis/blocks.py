"""An answer as a list of blocks, for APIs that number what an answer consists of: thoughts, texts and calls in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from llmctl.serve.answers.answer import Piece
from llmctl.serve.answers.parts import Call, Kind


@dataclass
class Block:
    """A part of an answer.

    Attributes:
        kind: What it is.
        index: Its number.
        text: Its text so far; of a call its arguments.
        call: The call.
    """

    kind: Kind
    index: int
    text: str = ""
    call: Call | None = None


Change = tuple[Literal["begin", "more", "end"], Block, str]
"""A block begins, grows by a text, or ends."""


class Blocks:
    """The blocks of one answer while it grows.

    Attributes:
        rows: The blocks so far.
        finish: Why the answer has ended; empty = it has not.
        cut: Whether it has ended within the arguments of a call.
    """

    def __init__(self) -> None:
        self.rows: list[Block] = []
        self.finish, self.cut = "", False
        self._open = False

    def add(self, piece: Piece) -> Iterator[Change]:
        """What a piece changes; an answer without any block ends with an empty text."""
        for part in piece.parts:
            if part.call is not None or not self._open or self.rows[-1].kind != part.kind:
                yield from self._begin(part.kind, part.call)
            if part.text:
                yield from self._more(part.text)
        if piece.finish:
            self.finish, self.cut = piece.finish, piece.cut
            if not self.rows:
                yield from self._begin("text")
            yield from self._end()

    def _begin(self, kind: Kind, call: Call | None = None) -> Iterator[Change]:
        yield from self._end()
        self.rows.append(Block(kind, len(self.rows), "", call))
        self._open = True
        yield "begin", self.rows[-1], ""

    def _more(self, text: str) -> Iterator[Change]:
        self.rows[-1].text += text
        yield "more", self.rows[-1], text

    def _end(self) -> Iterator[Change]:
        if self._open:
            self._open = False
            yield "end", self.rows[-1], ""
