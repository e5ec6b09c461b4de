"""Draft tokens by prompt lookup: what followed the sequence's last tokens at their previous occurrence
(https://github.com/apoorvumang/prompt-lookup-decoding). Draft tokens are verified, so answers do not change.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_NGRAM = 3
"""Tokens that are looked up at first; then fewer."""


class PromptLookup:
    """An index of the n-grams of a growing sequence.

    Args:
        ids: The sequence, to which tokens are only ever appended.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids
        self._after: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def propose(self, count: int) -> list[int]:
        """At most ``count`` tokens that followed the latest earlier occurrence of the last ones; empty = there is none."""
        ids = self._ids
        # N-grams that end with the last token are not indexed yet: nothing has followed them.
        for end in range(self._indexed + 1, len(ids)):
            for size in range(1, min(MAX_NGRAM, end) + 1):
                self._after[tuple(ids[end - size : end])] = end
        self._indexed = max(self._indexed, len(ids) - 1)
        for size in range(min(MAX_NGRAM, len(ids)), 0, -1):
            start = self._after.get(tuple(ids[len(ids) - size :]))
            if start is not None:
                return list(ids[start : start + count])
        return []
