"""From a conversation to ids and labels: truncation, loss on answers only, and the same prompt for generation.

Labels are shifted: ``labels[t]`` is the token that position t must predict, ``IGNORED`` where nothing is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmctl.data.sft.examples import Example
from llmctl.errors import DataError
from llmctl.tokenizers.base import ChatTemplate, Conversation, Tokenizer

IGNORED = -100
Run = tuple[list[int], bool]


@dataclass(frozen=True)
class Row:
    """An encoded example: ids, shifted labels, where it comes from, and whether anything was cut."""

    input_ids: list[int]
    labels: list[int]
    source: str
    truncated: bool


@dataclass(frozen=True)
class Counts:
    """What became of the examples: all, those cut to length, those dropped because no answer was left."""

    examples: int
    truncated: int
    dropped: int


def conversation(example: Example) -> Conversation:
    """The conversation of an example, all its answers given."""
    return Conversation(tuple(zip(example.src, example.tgt, strict=True)), example.system)


def prompt_ids(
    tokenizer: Tokenizer, asked: Conversation, where: str = "the prompt", option: str = "--chat-template"
) -> list[int]:
    """The ids that a model continues with its answer, just as it saw them in training.

    Args:
        tokenizer: With the template to use.
        asked: The conversation; its last answer is to be generated.
        where: Name of the prompt in messages.
        option: What chooses the template, in messages.

    Raises:
        DataError: Several turns, or a system text, and no chat template to write them with.
    """
    if tokenizer.chat_template:
        return tokenizer.chat_template.prompt(asked)
    check_plain(asked, where, option)
    return text_ids(tokenizer, asked.turns[-1][0])


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text that a model continues, without a chat template."""
    ids = tokenizer.encode(text, add_special=False)
    return [*tokenizer.special.prefix, *ids, *tokenizer.special.bridge]


def check_plain(asked: Conversation, where: str, option: str = "data.chat_template") -> None:
    """Passes for what can be written without a chat template: one turn and no system text.

    Raises:
        DataError: It cannot.
    """
    if len(asked.turns) > 1 or asked.system is not None:
        what = f"{len(asked.turns)} turns" if len(asked.turns) > 1 else "a system text"
        raise DataError(
            f"{where} has {what}, which needs a chat template; name one with {option}, or choose the family's with "
            f"{option} family"
        )


def plain_prompt(tokenizer: Tokenizer, text: str, limit: int) -> tuple[list[int], bool]:
    """The prompt of one question without a template, its text cut from the left to a limit; whether it was cut."""
    prefix, bridge = tokenizer.special.prefix, tokenizer.special.bridge
    ids = tokenizer.encode(text, add_special=False)
    room = max(limit - len(prefix) - len(bridge), 0)
    return [*prefix, *ids[max(len(ids) - room, 0) :], *bridge], len(ids) > room


def cut_question(tokenizer: Tokenizer, template: ChatTemplate, asked: Conversation, limit: int) -> Conversation:
    """A conversation of one turn, the user's text cut from the left until everything before the answer fits a limit.

    What the template itself writes stays, even if it alone is over the limit.
    """
    ((user, answer),) = asked.turns
    words = tokenizer.encode(user, add_special=False)
    over = 0
    while True:
        shorter = tokenizer.decode(words[over:]).lstrip("\ufffd") if over else user
        kept = replace(asked, turns=((shorter, answer),))
        excess = len(template.segments(kept)[0][0]) - limit
        if excess <= 0 or over >= len(words):
            return kept
        over = min(over + excess, len(words))


def with_end(ids: list[int], eos_ids: Sequence[int]) -> list[int]:
    """An answer with its end token, unless it has one already or there is none."""
    return ids if not eos_ids or any(token in eos_ids for token in ids) else [*ids, eos_ids[0]]


def last_answer(runs: Sequence[Run]) -> int | None:
    """Index of the last run that is an answer; None if there is none."""
    return max((index for index, (_, answer) in enumerate(runs) if answer), default=None)


class Encoder:
    """Encodes examples with a tokenizer and its chat template, if it has one.

    Without a template: the source is cut from the left to ``src_length``, the answer to what is left of ``max_length``,
    and the end token follows an answer that was not cut. With one: whole turns are dropped, oldest first; a single turn
    is cut in the same way as without a template, but only inside what the user wrote.

    Args:
        tokenizer: With the template to use.
        src_length: Longest source, in tokens.
        max_length: Longest source and answer together, in tokens.
    """

    def __init__(self, tokenizer: Tokenizer, src_length: int, max_length: int):
        self.tokenizer, self.src_length, self.max_length = tokenizer, src_length, max_length

    def encode(self, example: Example) -> Row | None:
        """The row of an example, or None if no token of an answer is left.

        Raises:
            DataError: The example needs a chat template and there is none.
        """
        template = self.tokenizer.chat_template
        runs, cut = self._chat(template, conversation(example)) if template else self._plain(example)
        ids = [token for run, _ in runs for token in run]
        targets = [token if answer else IGNORED for run, answer in runs for token in run]
        labels = targets[1:] + [IGNORED]
        if all(label == IGNORED for label in labels):
            return None
        return Row(ids, labels, example.source, cut)

    def prompt(self, example: Example) -> list[int]:
        """Ids of everything before the example's last answer, cut as in training."""
        last = (example.src[-1], None)
        asked = replace(conversation(example), turns=(*zip(example.src[:-1], example.tgt[:-1], strict=True), last))
        if self.tokenizer.chat_template:
            runs, _ = self._chat(self.tokenizer.chat_template, asked)
            return [token for run, _ in runs for token in run]
        return self._source(example)[0]

    def encode_all(self, examples: Sequence[Example]) -> tuple[list[Row], Counts]:
        """Rows of all examples that keep an answer, and counts of what happened."""
        rows = [row for row in map(self.encode, examples) if row is not None]
        return rows, Counts(len(examples), sum(row.truncated for row in rows), len(examples) - len(rows))

    def _source(self, example: Example) -> tuple[list[int], bool]:
        check_plain(conversation(example), example.source)
        return plain_prompt(self.tokenizer, example.src[-1], self.src_length)

    def _plain(self, example: Example) -> tuple[list[Run], bool]:
        source, cut = self._source(example)
        answer = self.tokenizer.encode(example.tgt[-1], add_special=False)
        run, answer_cut = self._answer(answer, len(source))
        return [(source, False), run], cut or answer_cut

    def _answer(self, ids: list[int], before: int, ended: bool = False) -> tuple[Run, bool]:
        """The run of an answer, with its end token unless one of the two had to be cut; whether it had.

        Args:
            ids: Of the answer.
            before: Number of tokens before it.
            ended: Whether an end token follows it already.
        """
        room = max(self.max_length - before, 0)
        ended_ids = ids if len(ids) > room or ended else with_end(ids, self.tokenizer.eos_ids)
        return (ended_ids[:room], True), len(ended_ids) > room

    def _chat(self, template: ChatTemplate, whole: Conversation) -> tuple[list[Run], bool]:
        """Runs of a conversation without its oldest turns where it is too long; whether anything was left out."""
        for first in range(len(whole.turns)):
            kept = replace(whole, turns=whole.turns[first:])
            runs = template.segments(kept)
            fits = sum(len(ids) for ids, _ in runs) <= self.max_length
            # A single source has a bound of its own; several turns are bounded by the whole length alone.
            if fits and (len(kept.turns) > 1 or len(runs[0][0]) <= self.src_length):
                return self._ended(runs, first > 0)
        # The last turn alone: the user's text is cut from the left until the source fits, then the answer.
        shorter = cut_question(self.tokenizer, template, kept, self.src_length)
        return self._ended(template.segments(shorter), first > 0 or shorter != kept)

    def _ended(self, runs: list[Run], cut: bool) -> tuple[list[Run], bool]:
        """The runs with their last answer, if there is one, cut to length or given its end token; whether all is cut."""
        last = last_answer(runs)
        if last is None:
            return runs, cut
        before, rest = sum(len(ids) for ids, _ in runs[:last]), runs[last + 1 :]
        ended = any(token in self.tokenizer.eos_ids for ids, _ in rest for token in ids)
        run, answer_cut = self._answer(runs[last][0], before, ended)
        fits = before + len(run[0]) + sum(len(ids) for ids, _ in rest) <= self.max_length
        return [*runs[:last], run, *(rest if fits and not answer_cut else ())], cut or answer_cut
