"""Names of special tokens in a user's text stay text: they are marked before a template renders them.

A name's first character is replaced by a mark and two characters for private use that stand for it, so that no tokenizer
finds the name, whatever its rules for spaces and words are. Marks are taken out again where the text between special
tokens is encoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MARK = "\ue0f2"
LENGTH = 3
"""Characters of an escape: the mark and two that encode the original character."""

_SHIFT = 0xF0000
_MARKED = re.compile(MARK + "(.)(.)", re.DOTALL)


def any_of(names: Iterable[str]) -> re.Pattern[str]:
    """A group that matches any of the names, the longest first."""
    ordered = sorted(names, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, ordered)) + ")") if ordered else re.compile("((?!))")


def cut_inside(names: re.Pattern[str], text: str) -> list[str]:
    """The text in parts, cut after the first character of every name, so that no part holds a whole name."""
    ends = [match.start() + 1 for match in names.finditer(text)]
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]


def mark(text: str, names: re.Pattern[str]) -> str:
    """The text with a mark in every name that the pattern finds; marks that it holds itself are left out."""
    text = text.replace(MARK, "") if MARK in text else text
    parts, done = [], 0
    while match := names.search(text, done):
        parts += [text[done : match.start()], marked(text[match.start()])]
        done = match.start() + 1
    return "".join([*parts, text[done:]])


def marked(character: str) -> str:
    """The escape of a character."""
    code = ord(character)
    return MARK + chr(_SHIFT + (code >> 8)) + chr(_SHIFT + (code & 0xFF))


def is_marked(text: str) -> bool:
    """Whether a part of a marked text has something of a mark."""
    return any(character == MARK or _SHIFT <= ord(character) <= _SHIFT + 0x10FF for character in text)


def unmark(text: str) -> str:
    """The text as the user wrote it."""
    return _MARKED.sub(_restored, text) if MARK in text else text


def _restored(match: re.Match[str]) -> str:
    high, low = (ord(part) - _SHIFT for part in match.groups())
    known = 0 <= high <= 0x10FF and 0 <= low <= 0xFF
    return chr(high << 8 | low) if known else match[0][1:]
