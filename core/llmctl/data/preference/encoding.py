"""Encodes preferences as token ids; prompts are the same as in generation.

If prompt and answers together are too long, the user text of the last turn is truncated from the left to its limit, then
both answers from the right, in proportion to their lengths. Earlier turns are kept as far as they fit, newest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmctl.data.preference.examples import Preference
from llmctl.data.sft.encoding import check_plain, last_answer, plain_prompt, prompt_ids, truncate_question, with_eos
from llmctl.tokenizers.base import Conversation, Tokenizer


@dataclass(frozen=True)
class Pair:
    """An encoded preference.

    Attributes:
        prompt: Token ids before the answers.
        chosen: Token ids of the chosen answer, with EOS unless it was truncated.
        rejected: Token ids of the rejected answer.
        source: ``file:line``.
        truncated: Whether the last user text or an answer was truncated.
        dropped_turns: Number of earlier turns that were dropped.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    source: str
    truncated: bool = False
    dropped_turns: int = 0

    def __len__(self) -> int:
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True)
class PairCounts:
    """Number of pairs, of those truncated, of those that lost earlier turns, and of those dropped.

    A pair is dropped if, after truncation, an answer is empty or both are equal.
    """

    pairs: int
    truncated: int
    shortened: int
    dropped: int


class PairEncoder:
    """Encodes preferences with a tokenizer and its chat template, if it has one.

    Args:
        tokenizer: The tokenizer, with its chat template if there is one.
        max_prompt_length: Longest prompt of the last turn, in tokens, if not everything fits.
        max_length: Longest prompt and both answers together, in tokens.
    """

    def __init__(self, tokenizer: Tokenizer, max_prompt_length: int, max_length: int):
        self.tokenizer, self.max_prompt_length, self.max_length = tokenizer, max_prompt_length, max_length

    def encode(self, row: Preference) -> Pair | None:
        """Encodes a preference; None if it is dropped.

        Raises:
            DataError: It needs a chat template and there is none.
        """
        question, pair = self._last_turn(row)
        left_out = len(row.tgt)
        while left_out:
            longer = self._whole(row, left_out - 1, question)
            if len(longer) > self.max_length:
                break
            pair, left_out = replace(longer, truncated=pair.truncated), left_out - 1
        if not (pair.prompt and pair.chosen and pair.rejected) or pair.chosen == pair.rejected:
            return None
        return replace(pair, dropped_turns=left_out)

    def encode_all(self, rows: Sequence[Preference]) -> tuple[list[Pair], PairCounts]:
        """Encodes all preferences, without those that are dropped, and counts."""
        pairs = [pair for pair in map(self.encode, rows) if pair is not None]
        truncated, shortened = (
            sum(map(bool, flags)) for flags in ([p.truncated for p in pairs], [p.dropped_turns for p in pairs])
        )
        return pairs, PairCounts(len(rows), truncated, shortened, len(rows) - len(pairs))

    def prompt(self, row: Preference) -> list[int]:
        """Token ids of everything before the answers, truncated as in training."""
        pair = self.encode(row)
        return pair.prompt if pair else prompt_ids(self.tokenizer, row.conversation(first=len(row.tgt)), row.source)

    def _last_turn(self, row: Preference) -> tuple[str, Pair]:
        """The last user text, truncated as needed, and the pair of the last turn alone."""
        question, first = row.src[-1], len(row.tgt)
        pair = self._whole(row, first, question)
        if len(pair) <= self.max_length:
            return question, pair
        if len(pair.prompt) > self.max_prompt_length:
            if self.tokenizer.chat_template:
                asked = row.conversation(first=first)
                kept = truncate_question(self.tokenizer, self.tokenizer.chat_template, asked, self.max_prompt_length)
                question = kept.turns[-1][0]
                pair = self._whole(row, first, question)
            else:
                pair = replace(pair, prompt=plain_prompt(self.tokenizer, question, self.max_prompt_length)[0])
        room = max(self.max_length - len(pair.prompt), 0)
        answers = len(pair.chosen) + len(pair.rejected)
        if answers > room:
            chosen = room * len(pair.chosen) // answers
            pair = replace(pair, chosen=pair.chosen[:chosen], rejected=pair.rejected[: room - chosen])
        return question, replace(pair, truncated=True)

    def _whole(self, row: Preference, first: int, question: str) -> Pair:
        """The pair of the conversation from turn ``first`` on, without truncation."""
        prompt = prompt_ids(self.tokenizer, row.conversation(None, first, question), row.source)
        chosen, rejected = (
            self._answer(row.conversation(text, first, question)) for text in (row.chosen, row.rejected)
        )
        return Pair(prompt, chosen, rejected, row.source)

    def _answer(self, answered: Conversation) -> list[int]:
        """Token ids of the last answer."""
        text = answered.turns[-1][1]
        assert text is not None
        template = self.tokenizer.chat_template
        if template is None:
            return with_eos(self.tokenizer.encode(text, add_special=False), self.tokenizer.eos_ids)
        segments = template.segments(answered)
        last = last_answer(segments)
        assert last is not None
        return with_eos(segments[last][0], self.tokenizer.eos_ids)


def check_preference(row: Preference, tokenizer: Tokenizer) -> None:
    """Checks that a preference can be encoded: with a chat template, or with one turn and no system prompt.

    Raises:
        DataError: It needs a chat template and there is none.
    """
    if tokenizer.chat_template is None:
        check_plain(row.conversation(), row.source)
