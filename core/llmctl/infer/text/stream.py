"""Text while an answer grows: whole characters, without stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmctl.infer.request import Event
from llmctl.tokenizers import Tokenizer


class StopFilter:
    """Text that passes piece by piece until a stop string appears; no part of a stop string passes.

    Args:
        stops: The stop strings.

    Attributes:
        stopped: Whether one has appeared.
        stop: Which one.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = [stop for stop in stops if stop]
        self._held = self.stop = ""
        self.stopped = False

    def add(self, piece: str) -> str:
        """What may be shown after this piece."""
        if not self._stops:
            return piece
        text = self._held + piece
        found = [(text.index(stop), stop) for stop in self._stops if stop in text]
        if found:
            place, self.stop = min(found)
            self.stopped, self._held = True, ""
            return text[:place]
        keep = max((self._overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The text that was held back, since no stop string was completed."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of the text that begins the stop string."""
        sizes = range(min(len(stop) - 1, len(text)), 0, -1)
        return next((size for size in sizes if text.endswith(stop[:size])), 0)


class TextStream:
    """The text of one answer while it grows.

    Args:
        tokenizer: The model's.
        stops: Strings that end the answer.
        show: Called with each piece of text.

    Attributes:
        text: The text so far.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], show: Callable[[str], None]) -> None:
        self._pieces, self._filter, self._show = tokenizer.stream(), StopFilter(stops), show
        self.text = ""

    def on_event(self, event: Event) -> bool:
        """Takes a token; True = a stop string has appeared."""
        if event.token is None:
            return False
        self._add(self._filter.add(self._pieces.add(event.token)))
        return self._filter.stopped

    def finish(self) -> bool:
        """Takes what was held back; returns whether a stop string ended the text."""
        if not self._filter.stopped:
            self._add(self._filter.add(self._pieces.finish()))
            self._add("" if self._filter.stopped else self._filter.finish())
        return self._filter.stopped

    def _add(self, piece: str) -> None:
        self.text += piece
        if piece:
            self._show(piece)
