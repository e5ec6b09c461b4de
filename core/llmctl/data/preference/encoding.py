"""Encodes preferences as token ids; prompts are the same as in generation.

If prompt and answers together are too long, the user text of the last turn is truncated from the left to its limit, then
both answers from the right, in proportion to their lengths. Earlier turns are kept as far as they fit, newest first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmctl.data.encoded import Coder
from llmctl.data.preference.examples import Preference
from llmctl.data.sft.encoding import check_plain, plain_prompt, prompt_ids, truncate_question, with_eos
from llmctl.tokenizers.base import Tokenizer
from llmctl.tokenizers.conversation import Conversation


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


def row_length(pair: Pair, window: int | None) -> int:
    """Tokens of a pair in a row.

    Args:
        pair: The pair.
        window: Sliding window of the model's attention, in tokens; a longer pair becomes two documents, because after the
            chosen answer the rejected one would see less of the prompt than on its own.
    """
    return len(pair) + (0 if is_shared(pair, window) else len(pair.prompt))


def is_shared(pair: Pair, window: int | None) -> bool:
    """Whether both answers of a pair are in one document, after one prompt; see ``row_length``."""
    return window is None or len(pair) <= window


def identity(pair: Pair) -> list[int]:
    """Integers that identify the content of a pair."""
    parts = (pair.prompt, pair.chosen, pair.rejected)
    return [*map(len, parts), *(token for part in parts for token in part)]


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
        prompt, pair = self._last_turn(row)
        left_out = len(prompt.turn_starts()) - 1
        while left_out:
            longer = self._whole(row, prompt.without_turns(left_out - 1))
            if len(longer) > self.max_length:
                break
            pair, left_out = replace(longer, truncated=pair.truncated), left_out - 1
        if not (pair.prompt and pair.chosen and pair.rejected) or pair.chosen == pair.rejected:
            return None
        return replace(pair, dropped_turns=left_out)

    def coder(self, window: int | None = None) -> Coder[Pair]:
        """How pairs become rows, for ``data.encoded``.

        Args:
            window: Sliding window of the model's attention, in tokens; see ``row_length``.
        """
        return Coder(self.encode, lambda pair: row_length(pair, window), identity)

    def prompt(self, row: Preference) -> list[int]:
        """Token ids of everything before the answers, truncated as in training."""
        pair = self.encode(row)
        return pair.prompt if pair else prompt_ids(self.tokenizer, _last_turn(row.prompt), row.source)

    def _last_turn(self, row: Preference) -> tuple[Conversation, Pair]:
        """The prompt, its last user texts truncated as needed, and the pair of the last turn alone."""
        prompt, last = row.prompt, _last_turn(row.prompt)
        pair = self._whole(row, last)
        if len(pair) <= self.max_length:
            return prompt, pair
        if len(pair.prompt) > self.max_prompt_length:
            if self.tokenizer.chat_template:
                last = truncate_question(self.tokenizer, self.tokenizer.chat_template, last, self.max_prompt_length)
                prompt, pair = prompt.with_last_turn_of(last), self._whole(row, last)
            else:
                shorter, _ = plain_prompt(self.tokenizer, last.question, self.max_prompt_length)
                pair = replace(pair, prompt=shorter)
        room = max(self.max_length - len(pair.prompt), 0)
        answers = len(pair.chosen) + len(pair.rejected)
        if answers > room:
            chosen = room * len(pair.chosen) // answers
            pair = replace(pair, chosen=pair.chosen[:chosen], rejected=pair.rejected[: room - chosen])
        return prompt, replace(pair, truncated=True)

    def _whole(self, row: Preference, prompt: Conversation) -> Pair:
        """The pair of a prompt without truncation."""
        ids = prompt_ids(self.tokenizer, prompt, row.source)
        chosen, rejected = (self._answer(prompt.answered(answer)) for answer in (row.chosen, row.rejected))
        return Pair(ids, chosen, rejected, row.source)

    def _answer(self, answered: Conversation) -> list[int]:
        """Token ids of the last answer."""
        template = self.tokenizer.chat_template
        if template is None:
            text = answered.messages[-1].content or ""
            return with_eos(self.tokenizer.encode(text, add_special=False), self.tokenizer.eos_ids)
        segments = template.segments(answered)
        last = max(index for index, (_, answer) in enumerate(segments) if answer)
        return with_eos(segments[last][0], self.tokenizer.eos_ids)


def _last_turn(prompt: Conversation) -> Conversation:
    return prompt.without_turns(len(prompt.turn_starts()) - 1)


def check_preference(row: Preference, tokenizer: Tokenizer) -> None:
    """Checks that a preference can be encoded: with a chat template, or with one turn and no system prompt.

    Raises:
        DataError: It needs a chat template and there is none.
    """
    if tokenizer.chat_template is None:
        for answer in (row.chosen, row.rejected):
            check_plain(row.prompt.answered(answer), row.source)
