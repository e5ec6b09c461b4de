"""Encodes conversations as token ids and labels: truncation, loss on answers only, and the same prompts for generation.

Labels are shifted: ``labels[t]`` is the token that position t predicts, or ``IGNORE_INDEX`` where there is no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmctl.data.sft.examples import Example
from llmctl.errors import DataError
from llmctl.tokenizers.base import ChatTemplate, Conversation, Tokenizer

IGNORE_INDEX = -100
Segment = tuple[list[int], bool]
"""Consecutive token ids, and whether they belong to an answer."""


@dataclass(frozen=True)
class EncodedExample:
    """Token ids, shifted labels, the source (``file:line``), and whether anything was truncated."""

    input_ids: list[int]
    labels: list[int]
    source: str
    truncated: bool


@dataclass(frozen=True)
class ExampleCounts:
    """Number of examples, of those truncated, and of those dropped because no token of an answer was left."""

    examples: int
    truncated: int
    dropped: int


def conversation(example: Example) -> Conversation:
    """The conversation of an example, with all answers."""
    return Conversation(tuple(zip(example.src, example.tgt, strict=True)), example.system)


def prompt_ids(
    tokenizer: Tokenizer, chat: Conversation, where: str = "the prompt", option: str = "--chat-template"
) -> list[int]:
    """Token ids of a prompt for generation, as in training.

    Args:
        tokenizer: The tokenizer, with its chat template if there is one.
        chat: The conversation; its last answer is None.
        where: Name of the prompt, for messages.
        option: Option that sets the template, for messages.

    Raises:
        DataError: There is no chat template, and the conversation has several turns or a system prompt.
    """
    if tokenizer.chat_template:
        return tokenizer.chat_template.prompt(chat)
    check_plain(chat, where, option)
    return text_ids(tokenizer, chat.turns[-1][0])


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a prompt, without a chat template."""
    ids = tokenizer.encode(text, add_special=False)
    return [*tokenizer.special.prefix, *ids, *tokenizer.special.bridge]


def check_plain(chat: Conversation, where: str, option: str = "data.chat_template") -> None:
    """Checks that a conversation can be encoded without a chat template: it has one turn and no system prompt.

    Raises:
        DataError: It needs a chat template.
    """
    if len(chat.turns) > 1 or chat.system is not None:
        what = f"{len(chat.turns)} turns" if len(chat.turns) > 1 else "a system prompt"
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
    """Truncates the user text of a single turn from the left until everything before the answer has ``limit`` tokens.

    Tokens that the template adds are kept, even if they alone exceed the limit.
    """
    ((user, answer),) = chat.turns
    words = tokenizer.encode(user, add_special=False)
    over = 0
    while True:
        shorter = tokenizer.decode(words[over:]).lstrip("\ufffd") if over else user
        kept = replace(chat, turns=((shorter, answer),))
        excess = len(template.segments(kept)[0][0]) - limit
        if excess <= 0 or over >= len(words):
            return kept
        over = min(over + excess, len(words))


def with_eos(ids: list[int], eos_ids: Sequence[int]) -> list[int]:
    """An answer with the EOS token appended, unless it contains one or the tokenizer has none."""
    return ids if not eos_ids or any(token in eos_ids for token in ids) else [*ids, eos_ids[0]]


def last_answer(segments: Sequence[Segment]) -> int | None:
    """Index of the last segment that is an answer, or None."""
    return max((index for index, (_, answer) in enumerate(segments) if answer), default=None)


class Encoder:
    """Encodes examples with a tokenizer and its chat template, if it has one.

    Without a template, the prompt is truncated from the left to ``src_length``, then the answer from the right to the after
    of ``max_length``; an answer that is not truncated ends with EOS. With a template, the oldest turns are dropped first; a
    single turn is truncated as above, but only inside the user's text.

    Args:
        tokenizer: The tokenizer, with its chat template if there is one.
        src_length: Longest prompt, in tokens.
        max_length: Longest prompt and answer together, in tokens.
    """

    def __init__(self, tokenizer: Tokenizer, src_length: int, max_length: int):
        self.tokenizer, self.src_length, self.max_length = tokenizer, src_length, max_length

    def encode(self, example: Example) -> EncodedExample | None:
        """Encodes an example; None if no token of an answer is left.

        Raises:
            DataError: The example needs a chat template and there is none.
        """
        template = self.tokenizer.chat_template
        segments, truncated = self._chat(template, conversation(example)) if template else self._plain(example)
        ids = [token for segment, _ in segments for token in segment]
        targets = [token if answer else IGNORE_INDEX for segment, answer in segments for token in segment]
        labels = targets[1:] + [IGNORE_INDEX]
        if all(label == IGNORE_INDEX for label in labels):
            return None
        return EncodedExample(ids, labels, example.source, truncated)

    def prompt(self, example: Example) -> list[int]:
        """Token ids of everything before the last answer, truncated as in training."""
        last = (example.src[-1], None)
        chat = replace(conversation(example), turns=(*zip(example.src[:-1], example.tgt[:-1], strict=True), last))
        if self.tokenizer.chat_template:
            segments, _ = self._chat(self.tokenizer.chat_template, chat)
            return [token for segment, _ in segments for token in segment]
        return self._source(example)[0]

    def encode_all(self, examples: Sequence[Example]) -> tuple[list[EncodedExample], ExampleCounts]:
        """Encodes all examples, without those that are dropped, and counts."""
        rows = [row for row in map(self.encode, examples) if row is not None]
        return rows, ExampleCounts(len(examples), sum(row.truncated for row in rows), len(examples) - len(rows))

    def _source(self, example: Example) -> tuple[list[int], bool]:
        check_plain(conversation(example), example.source)
        return plain_prompt(self.tokenizer, example.src[-1], self.src_length)

    def _plain(self, example: Example) -> tuple[list[Segment], bool]:
        source, truncated = self._source(example)
        answer = self.tokenizer.encode(example.tgt[-1], add_special=False)
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
        """Segments of a conversation without its oldest turns where it is too long; whether anything was left out."""
        for first in range(len(whole.turns)):
            kept = replace(whole, turns=whole.turns[first:])
            segments = template.segments(kept)
            fits = sum(len(ids) for ids, _ in segments) <= self.max_length
            # src_length limits a single turn; several turns are limited only by max_length.
            if fits and (len(kept.turns) > 1 or len(segments[0][0]) <= self.src_length):
                return self._end_answer(segments, first > 0)
        # The last turn alone: truncate the user's text from the left to src_length, then the answer.
        shorter = truncate_question(self.tokenizer, template, kept, self.src_length)
        return self._end_answer(template.segments(shorter), first > 0 or shorter != kept)

    def _end_answer(self, segments: list[Segment], truncated: bool) -> tuple[list[Segment], bool]:
        """The segments with the last answer, if any, truncated or followed by EOS; whether anything was truncated."""
        last = last_answer(segments)
        if last is None:
            return segments, truncated
        before, after = sum(len(ids) for ids, _ in segments[:last]), segments[last + 1 :]
        ended = any(token in self.tokenizer.eos_ids for ids, _ in after for token in ids)
        segment, answer_truncated = self._answer(segments[last][0], before, ended)
        fits = before + len(segment[0]) + sum(len(ids) for ids, _ in after) <= self.max_length
        return [
            *segments[:last],
            segment,
            *(after if fits and not answer_truncated else ()),
        ], truncated or answer_truncated
