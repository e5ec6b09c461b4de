"""Decoding token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class DecodeStream:
    """Text piece by piece: no piece ends inside a UTF-8 character, and all pieces together are the decoded text.

    Each id is decoded together with the few before it that the previous piece came from, so that the cost of an id does
    not grow with the length of the text.

    Args:
        decode: Text of ids.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self._decode = decode
        self._ids: list[int] = []
        self._emitted = 0

    def add(self, token: int) -> str:
        """The text that this id completes; empty while a character is incomplete."""
        self._ids.append(token)
        known, text = self._texts()
        if len(text) <= len(known) or text.endswith("\ufffd"):
            return ""
        self._ids = self._ids[self._emitted :]
        self._emitted = len(self._ids)
        return text[len(known) :]

    def finish(self) -> str:
        """What is left at the end; an incomplete character becomes U+FFFD."""
        known, text = self._texts()
        self._ids, self._emitted = [], 0
        return text[len(known) :]

    def _texts(self) -> tuple[str, str]:
        return self._decode(self._ids[: self._emitted]), self._decode(self._ids)
