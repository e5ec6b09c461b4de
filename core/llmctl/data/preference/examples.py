"""Reading preference data: JSON lines of conversations with two answers to the last user turn: a chosen and a rejected one.

A line is ``{"src": [...], "tgt": [...], "response": [a, b], "sort": [x, y], "context": {"system": text}}``: ``tgt`` holds
the answers of all turns but the last, ``response`` the two for the last; the one with the larger ``sort`` is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmctl.data.sft.examples import parse_object, require_keys, system_text, turns
from llmctl.tokenizers.conversation import Conversation, Message

_REQUIRED = ("src", "tgt", "response", "sort")
_KEYS = (*_REQUIRED, "context")


@dataclass(frozen=True, slots=True)
class Preference:
    """A conversation with two answers to it.

    Attributes:
        prompt: The conversation, whose answer is to be generated.
        chosen: The better answer.
        rejected: The other one.
        source: ``file:line``.
    """

    prompt: Conversation
    chosen: Message
    rejected: Message
    source: str

    @property
    def question(self) -> str:
        """The last user text."""
        return self.prompt.question


def parse_preference(text: str | None, source: str) -> Preference:
    """Parses the preference in a line.

    Raises:
        ValueError: The line is not valid; the message is the reason.
    """
    row = parse_object(text)
    require_keys(row, _REQUIRED, _KEYS)
    src = turns("src", row["src"])
    tgt = () if row["tgt"] == [] else turns("tgt", row["tgt"])
    if len(src) != len(tgt) + 1:
        raise ValueError(f"'src' has {len(src)} turns, 'tgt' has {len(tgt)}; 'src' must have one more")
    response = turns("response", row["response"])
    if len(response) != 2:
        raise ValueError(f"'response' must have two answers, got {len(response)}")
    if response[0].strip() == response[1].strip():
        raise ValueError("the two answers of 'response' are the same")
    better, other = _order(row["sort"])
    prompt = Conversation(zip(src, (*tgt, None), strict=True), system_text(row.get("context")))
    return Preference(prompt, Message("assistant", response[better]), Message("assistant", response[other]), source)


def _order(sort: Any) -> tuple[int, int]:
    """Index of the chosen and of the rejected answer."""
    numbers = isinstance(sort, list) and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in sort)
    if not numbers or len(sort) != 2:
        raise ValueError("'sort' must be a list of two numbers")
    if sort[0] > sort[1]:
        return 0, 1
    if sort[1] > sort[0]:
        return 1, 0
    raise ValueError("the two numbers of 'sort' are equal, so neither answer is better")
