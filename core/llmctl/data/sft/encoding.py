"""Encodes conversations as token ids and labels: truncation, loss on answers only, and the same prompts for generation.

Labels are shifted: ``labels[t]`` is the token that position t predicts, or ``IGNORE_INDEX`` where there is no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.data.encoded import Coder
from llmctl.data.sft.examples import Example
from llmctl.errors import DataError
from llmctl.tokenizers.base import ChatTemplate, Segment, Tokenizer
from llmctl.tokenizers.conversation import Conversation

IGNORE_INDEX = -100


@dataclass(frozen=True)
class EncodedExample:
    """Token ids, shifted labels, the source (``file:line``), and whether anything was truncated."""

    input_ids: list[int]
    labels: list[int]
    source: str
    truncated: bool


def prompt_ids(
    tokenizer: Tokenizer, chat: Conversation, where: str = "the prompt", option: str = "--chat-template"
) -> list[int]:
    """Token ids of a prompt for generation, as in training.

    Args:
        tokenizer: The tokenizer, with its chat template if there is one.
        chat: The conversation; an answer that is its last message is left out.
        where: Name of the prompt, for messages.
        option: Option that sets the template, for messages.

    Raises:
        DataError: There is no chat template, and the conversation is more than one user text.
    """
    if tokenizer.chat_template:
        return tokenizer.chat_template.prompt(chat)
    check_plain(chat, where, option)
    return text_ids(tokenizer, chat.question)


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a prompt, without a chat template."""
    ids = tokenizer.encode(text, add_special=False)
    return [*tokenizer.special.prefix, *ids, *tokenizer.special.bridge]


def check_plain(chat: Conversation, where: str, option: str = "data.chat_template") -> None:
    """Checks that a conversation can be encoded without a chat template: one user text, and an answer or none.

    Raises:
        DataError: It needs a chat template.
    """
    turns = len(chat.turn_starts())
    what = chat.beyond_turns() or (
        f"{turns} turns" if turns > 1 else "a system prompt" if chat.system is not None else None
    )
    if what:
        raise DataError(
            f"{where} has {what}, which needs a chat template; set one with {option}, or use the family's with "
            f"{option} family"
        )


def plain_prompt(tokenizer: Tokenizer, text: str, limit: int) -> tuple[list[int], bool]:
    """Token ids of a prompt without chat template, its text truncated from the left, and whether it was truncated."""
    prefix, bridge = tokenizer.special.prefix, tokenizer.special.bridge
    ids = tokenizer.encode(text, add_special=False)
    room = max(limit - len(prefix) - len(bridge), 0)
    return [*prefix, *ids[max(len(ids) - room, 0) :], *bridge], len(ids) > room


def truncate_question(tokenizer: Tokenizer, template: ChatTemplate, chat: Conversation, limit: int) -> Conversation:
    """Truncates the user texts of a single turn from the left until everything before its first answer has ``limit`` tokens.

    Tokens that the template adds are kept, even if they alone exceed the limit.
    """
    for index, message in enumerate(chat.messages):
        if message.role == "user":
            chat, fits = _truncate_message(tokenizer, template, chat, index, limit)
            if fits:
                break
    return chat


def _truncate_message(
    tokenizer: Tokenizer, template: ChatTemplate, chat: Conversation, index: int, limit: int
) -> tuple[Conversation, bool]:
    """The conversation with one message truncated from the left, and whether everything before the first answer fits."""
    text = chat.messages[index].content or ""
    words = tokenizer.encode(text, add_special=False)
    over = 0
    while True:
        shorter = tokenizer.decode(words[over:]).lstrip("\ufffd") if over else text
        kept = chat.with_content(index, shorter)
        excess = len(template.segments(kept)[0][0]) - limit
        if excess <= 0 or over >= len(words):
            return kept, excess <= 0
        over = min(over + excess, len(words))


def with_eos(ids: list[int], eos_ids: Sequence[int]) -> list[int]:
    """An answer with the EOS token appended, unless it contains one or the tokenizer has none."""
    return ids if not eos_ids or any(token in eos_ids for token in ids) else [*ids, eos_ids[0]]


def identity(row: Any) -> list[int]:
    """Integers that identify the content of a row with ids and labels."""
    return [len(row.input_ids), *row.input_ids, *row.labels]


class Encoder:
    """Encodes examples with a tokenizer and its chat template, if it has one.

    Without a template, the prompt is truncated from the left to ``src_length``, then the answer from the right to the after
    of ``max_length``; an answer that is not truncated ends with EOS. With a template, the oldest turns are dropped first; a
    single turn is truncated as above, but only inside the user's text.

    Args:
        tokenizer: The tokenizer, with its chat template if there is one.
        src_length: Longest prompt, in tokens.
        max_length: Longest prompt and answer together, in tokens.
        train_on: Which answers are trained on: ``all`` or ``last``.
        option: What sets the chat template, for messages.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        src_length: int,
        max_length: int,
        train_on: str = "all",
        option: str = "data.chat_template",
    ):
        self.tokenizer, self.src_length, self.max_length, self.train_on = tokenizer, src_length, max_length, train_on
        self._option = option

    def encode(self, example: Example) -> EncodedExample | None:
        """Encodes an example; None if no token of an answer is left.

        Raises:
            DataError: The example needs a chat template and there is none.
        """
        chat = example.conversation if self.train_on == "all" else example.conversation.last_answer_only()
        template = self.tokenizer.chat_template
        segments, truncated = self._chat(template, chat) if template else self._plain(chat, example.source)
        ids = [token for segment, _ in segments for token in segment]
        targets = [token if answer else IGNORE_INDEX for segment, answer in segments for token in segment]
        labels = targets[1:] + [IGNORE_INDEX]
        if all(label == IGNORE_INDEX for label in labels):
            return None
        return EncodedExample(ids, labels, example.source, truncated)

    def prompt(self, example: Example) -> list[int]:
        """Token ids of everything before the last answer, truncated as in training."""
        asked = example.conversation.asked()
        if self.tokenizer.chat_template:
            segments, _ = self._chat(self.tokenizer.chat_template, asked)
            return [token for segment, _ in segments for token in segment]
        return self._source(asked, example.source)[0]

    @property
    def coder(self) -> Coder[EncodedExample]:
        """How examples become rows, for ``data.encoded``."""
        return Coder(self.encode, lambda row: len(row.input_ids), identity)

    def _source(self, chat: Conversation, where: str) -> tuple[list[int], bool]:
        check_plain(chat, where, self._option)
        return plain_prompt(self.tokenizer, chat.question, self.src_length)

    def _plain(self, chat: Conversation, where: str) -> tuple[list[Segment], bool]:
        source, truncated = self._source(chat, where)
        answer = self.tokenizer.encode(chat.messages[-1].content or "", add_special=False)
        segment, answer_truncated = self._answer(answer, len(source))
        return [(source, False), segment], truncated or answer_truncated

    def _answer(self, ids: list[int], before: int, ended: bool = False) -> tuple[Segment, bool]:
        """Truncates an answer, or appends EOS to it; also returns whether anything was truncated.

        Args:
            ids: Token ids of the answer.
            before: Number of tokens before it.
            ended: Whether an EOS token already follows it.
        """
        room = max(self.max_length - before, 0)
        ended_ids = ids if len(ids) > room or ended else with_eos(ids, self.tokenizer.eos_ids)
        return (ended_ids[:room], True), len(ended_ids) > room

    def _chat(self, template: ChatTemplate, whole: Conversation) -> tuple[list[Segment], bool]:
        """(segments of a conversation, without its oldest turns if it is too long; whether anything was left out)."""
        turns = len(whole.turn_starts())
        for first in range(turns):
            kept = whole.without_turns(first)
            segments = template.segments(kept)
            fits = sum(len(ids) for ids, _ in segments) <= self.max_length
            # src_length limits a single turn; several turns are limited only by max_length.
            if fits and (turns - first > 1 or len(segments[0][0]) <= self.src_length):
                return self._end_answer(kept, segments, first > 0)
        # The last turn alone: truncate the user's text from the left to src_length, then the answer.
        shorter = truncate_question(self.tokenizer, template, kept, self.src_length)
        return self._end_answer(shorter, template.segments(shorter), first > 0 or shorter != kept)

    def _end_answer(self, chat: Conversation, segments: list[Segment], truncated: bool) -> tuple[list[Segment], bool]:
        """The segments, the last answer truncated or followed by EOS; whether anything was truncated.

        Of the answers of one turn, those that begin beyond ``max_length`` are left out.
        """
        answers = [index for index, (_, answer) in enumerate(segments) if answer]
        if chat.add_generation_prompt or not answers:
            return segments, truncated
        starts = [sum(len(ids) for ids, _ in segments[:index]) for index in answers]
        number = max(sum(start < self.max_length for start in starts) - 1, 0)
        last, before = answers[number], starts[number]
        after = segments[last + 1 :]
        ended = any(token in self.tokenizer.eos_ids for ids, _ in after for token in ids)
        segment, answer_truncated = self._answer(segments[last][0], before, ended)
        truncated = truncated or answer_truncated or last != answers[-1]
        fits = before + len(segment[0]) + sum(len(ids) for ids, _ in after) <= self.max_length
        return [*segments[:last], segment, *(after if fits and not answer_truncated else ())], truncated
