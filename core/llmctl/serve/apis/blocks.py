"""An answer as a list of blocks, for APIs that number what an answer consists of: thoughts, texts and calls in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from llmctl.serve.answers.answer import Piece
from llmctl.serve.answers.parts import Call

Kind = Literal["thoughts", "text", "call"]


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
    """

    def __init__(self) -> None:
        self.rows: list[Block] = []
        self.finish = ""
        self._open = False

    def add(self, piece: Piece) -> Iterator[Change]:
        """What a piece changes; an answer without any block ends with an empty text."""
        if piece.thoughts:
            yield from self._grow("thoughts", piece.thoughts)
        if piece.text:
            yield from self._grow("text", piece.text)
        for call in piece.calls:
            yield from self._begin("call", call)
            yield from self._more(call.arguments)
            yield from self._end()
        if piece.finish:
            self.finish = piece.finish
            if not self.rows:
                yield from self._begin("text")
            yield from self._end()

    def _grow(self, kind: Kind, text: str) -> Iterator[Change]:
        if not self._open or self.rows[-1].kind != kind:
            yield from self._begin(kind)
        yield from self._more(text)

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
