"""Guesses of the next tokens: what followed the sequence's last tokens when they stood in it before (prompt lookup,
https://github.com/apoorvumang/prompt-lookup-decoding). They are checked before they count, so no answer changes.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 3
"""Tokens that are looked for at first; then fewer."""


class Lookup:
    """An index of a growing sequence.

    Args:
        ids: The sequence; tokens are only ever added to it.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids
        self._after: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def guess(self, count: int) -> list[int]:
        """At most ``count`` tokens that followed the latest earlier place of the last ones; empty = they are new."""
        ids = self._ids
        # What ends with the last token is not indexed yet: nothing has followed it.
        for end in range(self._indexed + 1, len(ids)):
            for size in range(1, min(LONGEST, end) + 1):
                self._after[tuple(ids[end - size : end])] = end
        self._indexed = max(self._indexed, len(ids) - 1)
        for size in range(min(LONGEST, len(ids)), 0, -1):
            place = self._after.get(tuple(ids[len(ids) - size :]))
            if place is not None:
                return list(ids[place : place + count])
        return []
