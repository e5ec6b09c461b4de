"""From preferences to ids: truncation of a prompt with two answers, and the same prompt as generation's.

Where prompt and answers together are too long, the last question is cut from the left to its limit, then both answers
from the right in proportion to their lengths. Earlier turns come back as far as they fit, newest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmctl.data.preference.examples import Preference
from llmctl.data.sft.encoding import check_plain, cut_question, last_answer, plain_prompt, prompt_ids, with_end
from llmctl.tokenizers.base import Conversation, Tokenizer


@dataclass(frozen=True)
class Pair:
    """An encoded preference.

    Attributes:
        prompt: Ids before the answers.
        chosen: Ids of the better answer, with its end token unless it was cut.
        rejected: Ids of the other.
        source: Where it stands.
        cut: Whether question or answers were cut.
        turns: Earlier turns that were left out.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    source: str
    cut: bool = False
    turns: int = 0

    def __len__(self) -> int:
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True)
class PairCounts:
    """What became of preferences: all, those cut, those without some earlier turns, those dropped.

    Dropped are those of which an answer is empty, or both are the same, within the length.
    """

    pairs: int
    cut: int
    shortened: int
    dropped: int


class PairEncoder:
    """Encodes preferences with a tokenizer and its chat template, if it has one.

    Args:
        tokenizer: With the template to use.
        max_prompt_length: Longest prompt of the last question, in tokens, where not everything fits.
        max_length: Longest prompt and both answers together, in tokens.
    """

    def __init__(self, tokenizer: Tokenizer, max_prompt_length: int, max_length: int):
        self.tokenizer, self.max_prompt_length, self.max_length = tokenizer, max_prompt_length, max_length

    def encode(self, row: Preference) -> Pair | None:
        """The pair of a preference, or None if no difference between its answers is left.

        Raises:
            DataError: It needs a chat template and there is none.
        """
        question, pair = self._last_turn(row)
        left_out = len(row.tgt)
        while left_out:
            longer = self._whole(row, left_out - 1, question)
            if len(longer) > self.max_length:
                break
            pair, left_out = replace(longer, cut=pair.cut), left_out - 1
        if not (pair.prompt and pair.chosen and pair.rejected) or pair.chosen == pair.rejected:
            return None
        return replace(pair, turns=left_out)

    def encode_all(self, rows: Sequence[Preference]) -> tuple[list[Pair], PairCounts]:
        """Pairs of all preferences of which a difference is left, and counts of what happened."""
        pairs = [pair for pair in map(self.encode, rows) if pair is not None]
        cut, shortened = (sum(map(bool, flags)) for flags in ([p.cut for p in pairs], [p.turns for p in pairs]))
        return pairs, PairCounts(len(rows), cut, shortened, len(rows) - len(pairs))

    def prompt(self, row: Preference) -> list[int]:
        """Ids of everything before the answers, cut as in training."""
        pair = self.encode(row)
        return pair.prompt if pair else prompt_ids(self.tokenizer, row.conversation(first=len(row.tgt)), row.source)

    def _last_turn(self, row: Preference) -> tuple[str, Pair]:
        """What is kept of the last question as text, and the pair of the last turn alone, cut to length."""
        question, first = row.src[-1], len(row.tgt)
        pair = self._whole(row, first, question)
        if len(pair) <= self.max_length:
            return question, pair
        if len(pair.prompt) > self.max_prompt_length:
            if self.tokenizer.chat_template:
                asked = row.conversation(first=first)
                kept = cut_question(self.tokenizer, self.tokenizer.chat_template, asked, self.max_prompt_length)
                question = kept.turns[-1][0]
                pair = self._whole(row, first, question)
            else:
                pair = replace(pair, prompt=plain_prompt(self.tokenizer, question, self.max_prompt_length)[0])
        room = max(self.max_length - len(pair.prompt), 0)
        answers = len(pair.chosen) + len(pair.rejected)
        if answers > room:
            chosen = room * len(pair.chosen) // answers
            pair = replace(pair, chosen=pair.chosen[:chosen], rejected=pair.rejected[: room - chosen])
        return question, replace(pair, cut=True)

    def _whole(self, row: Preference, first: int, question: str) -> Pair:
        """The pair of the conversation from a turn on, nothing cut."""
        prompt = prompt_ids(self.tokenizer, row.conversation(None, first, question), row.source)
        chosen, rejected = (
            self._answer(row.conversation(text, first, question)) for text in (row.chosen, row.rejected)
        )
        return Pair(prompt, chosen, rejected, row.source)

    def _answer(self, answered: Conversation) -> list[int]:
        """Ids of the last answer."""
        text = answered.turns[-1][1]
        assert text is not None
        template = self.tokenizer.chat_template
        if template is None:
            return with_end(self.tokenizer.encode(text, add_special=False), self.tokenizer.eos_ids)
        runs = template.segments(answered)
        last = last_answer(runs)
        assert last is not None
        return with_end(runs[last][0], self.tokenizer.eos_ids)


def check_preference(row: Preference, tokenizer: Tokenizer) -> None:
    """Passes when the conversation can be written: with a chat template, or with one turn and no system text.

    Raises:
        DataError: It cannot.
    """
    if tokenizer.chat_template is None:
        check_plain(row.conversation(), row.source)
