"""What is scored: texts in overlapping windows, and the answers of conversations. No paddle or numpy here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmctl.data.sft.encoding import IGNORE_INDEX, EncodedExample
from llmctl.errors import DataError
from llmctl.tokenizers import Tokenizer


@dataclass(frozen=True)
class Window:
    """Tokens that a model reads at once.

    Attributes:
        ids: Token ids.
        scored: Indices of the tokens that are predicted, each at least 1, ascending.
    """

    ids: Sequence[int]
    scored: Sequence[int]


@dataclass(frozen=True)
class Passage:
    """All windows of what was given.

    Attributes:
        windows: The windows; every token is scored in at most one.
        size: Bytes of the text that is scored; 0 = not known.
    """

    windows: Sequence[Window]
    size: int = 0


def text_windows(tokenizer: Tokenizer, text: str, length: int, stride: int) -> Passage:
    """A text in windows that overlap, so that every token but the first has some context.

    Args:
        tokenizer: The model's.
        text: The text.
        length: Tokens of a window.
        stride: Tokens by which windows move on; each scores as many, the first one all.

    Raises:
        DataError: The text has fewer than two tokens.
    """
    ids = [*tokenizer.special.prefix, *tokenizer.encode(text, add_special=False)]
    if len(ids) < 2:
        raise DataError("the text has fewer than two tokens, so that none can be predicted; give a longer one")
    # Without a token before it the first one is not predicted, nor are its bytes.
    first = 0 if tokenizer.special.prefix else len(tokenizer.decode(ids[:1]).encode())
    return Passage(overlapping(ids, length, stride), len(text.encode()) - first)


def overlapping(ids: Sequence[int], length: int, stride: int) -> list[Window]:
    """Tokens in windows of a length that score all but the first token once; the last window has as much context as fits.

    Args:
        ids: The tokens.
        length: Tokens of a window.
        stride: Tokens by which windows move on.
    """
    windows, done = [], 1
    while done < len(ids):
        stop = min(len(ids), length if done == 1 else done + stride)
        start = max(0, stop - length)
        windows.append(Window(ids[start:stop], range(done - start, stop - start)))
        done = stop
    return windows


def answer_windows(rows: Sequence[EncodedExample], size: int = 0) -> Passage:
    """The answers of encoded examples, a window each.

    Args:
        rows: The examples.
        size: Bytes of the answers' text.
    """
    return Passage([_answers(row) for row in rows], size)


def _answers(row: EncodedExample) -> Window:
    # labels[t] is the token at t + 1.
    scored = [at + 1 for at, label in enumerate(row.labels) if label != IGNORE_INDEX]
    last = scored[-1]
    ids = [*row.input_ids[: last + 1]]
    return Window(ids if last < len(ids) else [*ids, row.labels[last - 1]], scored)
