"""What every tokenizer offers, and decoding token by token."""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

from llmctl.errors import TokenizerError
from llmctl.io.copying import copy_into
from llmctl.tokenizers import protect
from llmctl.tokenizers.special import Special, without_template

FILES = (
    "tokenizer.json",
    "*.model",
    "*.tiktoken",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenization_*.py",
)
"""Files of a tokenizer that are copied as they are; ``tokenizer_config.json`` is written without its template. Code is
copied for other programs, and for the names of tokens in it; it is never run here."""


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes:
        folder: Where it was read from.
        special: Names and ids of special tokens.
        chat_template: How conversations are written, or None.
    """

    def __init__(self, folder: Path, special: Special):
        self.folder = folder
        self.special = special
        self.chat_template: ChatTemplate | None = None
        self._rows: int | None = None

    @property
    def base_size(self) -> int:
        """The highest id plus one of tokens that are not added: fewer rows are another model's."""
        added = {*self.special.ids.values(), *self.special.added.values()}
        return next((token + 1 for token in range(self.vocab_size - 1, -1, -1) if token not in added), 0)

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The highest id plus one: the rows that an embedding needs."""

    @abstractmethod
    def _encode(self, text: str, start: bool) -> list[int]:
        """Ids of text in which special tokens are plain text; ``start`` is False where it continues other text."""

    @abstractmethod
    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids; bytes that are not valid UTF-8 become U+FFFD."""

    @property
    def bos_id(self) -> int | None:
        """Id that begins a text."""
        return self.special.bos_id

    @property
    def eos_id(self) -> int | None:
        """Id that ends a text."""
        return self.special.eos_id

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """All ids that end a generated text, ``eos_id`` among them."""
        return tuple(token for token in self.special.eos_ids if self._has_row(token))

    @property
    def unk_id(self) -> int | None:
        """Id of what has no other token."""
        return self.special.unk_id

    @property
    def pad_id(self) -> int:
        """Id to fill rows with: pad, else eos, else unk, else 0. It is masked wherever it is used."""
        candidates = (self.special.pad_id, self.special.eos_id, self.special.unk_id)
        return next((token for token in candidates if token is not None and self._has_row(token)), 0)

    def _has_row(self, token: int) -> bool:
        return self._rows is None or token < self._rows

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False, start: bool = True) -> list[int]:
        """Ids of a text.

        Args:
            text: Any text.
            add_special: Whether the ids that the tokenizer puts around a prompt (usually bos) are added.
            parse_special: Whether names of special tokens in the text stand for these tokens; otherwise they are text.
            start: Whether this is the beginning of a text, where some tokenizers put a space.

        Raises:
            TokenizerError: A token of the text has no row in the model's embedding.
        """
        ids = self._parse(text, start) if parse_special else self._encode(text, start)
        self._check_rows(ids)
        special = self.special
        return [*special.prefix, *ids, *special.bridge, *special.suffix] if add_special else ids

    encodes_whole = False
    """Whether a rendered text is encoded in one go; otherwise each of its pieces is encoded apart."""

    def encode_pieces(self, pieces: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Ids of a rendered text that is given in pieces, each piece's ids in a list of its own.

        Special tokens are recognised but for names that `protect` marked. What comes before the last answer has the ids
        of its text alone, so that a prompt is the same in training and in generation.

        Args:
            pieces: Texts one after another, each with whether it is an answer.

        Raises:
            TokenizerError: A token of the text has no row in the model's embedding.
        """
        found, done = [], ""
        for piece, _ in pieces:
            start = not done or (self.special.space_after_special and not self._special_names.split(done)[-1])
            found.append(self._parse(piece, start))
            self._check_rows(found[-1])
            done += piece
        return found

    def protect(self, text: str) -> str:
        """A person's text with marks in the names of special tokens, which thus stay text where it is encoded."""
        return protect.mark(text, self._special_names)

    def limit_rows(self, rows: int) -> None:
        """Tells how many rows the model's embedding has: ids beyond are an error where they are used, and never pad or end."""
        self._rows = rows

    def _check_rows(self, ids: Sequence[int]) -> None:
        if self._rows is None or not ids or max(ids) < self._rows:
            return
        token = max(ids)
        name = next((name for name, i in {**self.special.added, **self.special.ids}.items() if i == token), str(token))
        raise TokenizerError(
            f"the text holds the token {name!r} with id {token}, and the model's embedding has only {self._rows} rows; "
            "leave it out, or give the model more rows"
        )

    def _parse(self, text: str, start: bool) -> list[int]:
        """Ids of a text with special tokens, marked names kept as text."""
        ids: list[int] = []
        for index, part in enumerate(self._special_names.split(text)):
            if index % 2:
                ids.append(self.special.ids[part])
            elif part:
                ids += self._encode(protect.unmark(part), start if index == 0 else self.special.space_after_special)
        return ids

    def stream(self, skip_special: bool = True) -> DecodeStream:
        """A decoder that takes ids one by one."""
        return DecodeStream(self, skip_special)

    def save(self, folder: Path) -> None:
        """Writes everything that loading again needs into an existing folder, the chosen chat template included."""
        for path in (path for pattern in FILES for path in self.folder.glob(pattern)):
            copy_into(path, folder)
        without_template(self.folder, folder)
        if self.chat_template:
            self.chat_template.save(folder)

    @cached_property
    def _special_names(self) -> re.Pattern[str]:
        return any_of(self.special.ids)


def any_of(names: Iterable[str]) -> re.Pattern[str]:
    """A group that matches any of the names, the longest first."""
    ordered = sorted(names, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, ordered)) + ")") if ordered else re.compile("((?!))")


def cut_inside(names: re.Pattern[str], text: str) -> list[str]:
    """The text in parts, cut after the first character of every name, so that no part holds a whole name."""
    ends = [match.start() + 1 for match in names.finditer(text)]
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]


class DecodeStream:
    """Text piece by piece: no piece ends inside a UTF-8 character, and all pieces together are the decoded text.

    Each id is decoded together with the few before it that the previous piece came from, so that the cost of an id does
    not grow with the length of the text.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool):
        self._decode = lambda ids: tokenizer.decode(ids, skip_special)
        self._ids: list[int] = []
        self._emitted = 0

    def add(self, token: int) -> str:
        """The text that this id completes; empty while a character is incomplete."""
        self._ids.append(token)
        known, text = self._texts()
        if len(text) <= len(known) or text.endswith("\ufffd"):
            return ""
        self._ids = self._ids[self._emitted :]
        self._emitted = len(self._ids)
        return text[len(known) :]

    def finish(self) -> str:
        """What is left at the end; an incomplete character becomes U+FFFD."""
        known, text = self._texts()
        self._ids, self._emitted = [], 0
        return text[len(known) :]

    def _texts(self) -> tuple[str, str]:
        return self._decode(self._ids[: self._emitted]), self._decode(self._ids)


Turn = tuple[str, str | None]


@dataclass(frozen=True)
class Conversation:
    """Turns of a user and a bot; the answer of the last turn is None where it is to be generated."""

    turns: tuple[Turn, ...]
    system: str | None = None

    def before(self, count: int, answered: bool) -> Conversation:
        """The first ``count`` turns, the last of them with its answer or without."""
        turns = self.turns[:count]
        return replace(self, turns=turns if answered else (*turns[:-1], (turns[-1][0], None)))

    def map(self, change: Callable[[str], str]) -> Conversation:
        """The conversation with every text changed."""
        turns = tuple((change(user), None if answer is None else change(answer)) for user, answer in self.turns)
        return Conversation(turns, None if self.system is None else change(self.system))


Segment = tuple[list[int], bool]
"""Ids, and whether they are an answer, which carries loss."""


LAST_ONLY = (
    "the chat template writes earlier turns in another way once there are later ones, and marks no answers with "
    "{% generation %}: of a conversation with several turns only the last answer carries loss"
)


class ChatTemplate(ABC):
    """A template for one tokenizer.

    Args:
        tokenizer: Whose special tokens the template writes.
    """

    now: datetime | None = None
    """The moment whose date a template writes; None = the present."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    @abstractmethod
    def text(self, conversation: Conversation) -> str:
        """The whole text; where the last answer is None it ends right before that answer."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the template into a model folder."""

    def answers(self, conversation: Conversation) -> list[tuple[str, bool]] | None:
        """The whole text in pieces, each with whether it is an answer, if the template itself marks answers."""
        return None

    def prompt(self, conversation: Conversation) -> list[int]:
        """Ids that a model continues with its answer to the last turn: the template is rendered once, over all turns."""
        asked = conversation.before(len(conversation.turns), answered=False).map(self._tokenizer.protect)
        pieces = None if self._tokenizer.encodes_whole else self._turn_by_turn(asked)
        ids = self._tokenizer.encode_pieces([(text, False) for text, _ in pieces or [(self.text(asked), False)]])
        return [*(token for run in ids for token in run), *self._tokenizer.special.bridge]

    def segments(self, conversation: Conversation) -> list[Segment]:
        """Ids in order, each run with whether it is an answer (and so carries loss).

        Answers are found by the template's own marks (``{% generation %}``), else by rendering turn by turn. A template
        that writes earlier turns in another way once there are later ones, such as one that leaves out old thoughts,
        gives the last answer only. Where a token
        covers the border of an earlier answer it counts as the answer's.

        Raises:
            TokenizerError: The text before the last answer changes when the answer is added.
        """
        safe = conversation.map(self._tokenizer.protect)
        bridge = self._tokenizer.special.bridge
        pieces = None if bridge else self.answers(safe) or self._turn_by_turn(safe)
        if pieces is None:
            pieces = self._last_answer(safe)
            if not bridge and len(safe.turns) > 1:
                warnings.warn(LAST_ONLY, UserWarning, stacklevel=2)
        if bridge:  # the answer begins a text
            encoded = [ids for piece in pieces for ids in self._tokenizer.encode_pieces([piece])]
            encoded[0] += bridge
        else:
            encoded = self._tokenizer.encode_pieces(pieces)
        return [(ids, answer) for ids, (_, answer) in zip(encoded, pieces, strict=True)]

    def _turn_by_turn(self, safe: Conversation) -> list[tuple[str, bool]] | None:
        """Text of each turn's question and answer; None if a later turn changes earlier text."""
        pieces: list[tuple[str, bool]] = []
        done = ""
        for count, (_, answer) in enumerate(safe.turns, 1):
            for answered in (False, True) if answer is not None else (False,):
                text = self.text(safe.before(count, answered))
                if not text.startswith(done):
                    return None
                pieces.append((text[len(done) :], answered))
                done = text
        return pieces

    def _last_answer(self, safe: Conversation) -> list[tuple[str, bool]]:
        """The text before the last answer, and the answer."""
        asked = self.text(safe.before(len(safe.turns), answered=False))
        if safe.turns[-1][1] is None:
            return [(asked, False)]
        whole = self.text(safe)
        if not whole.startswith(asked):
            raise TokenizerError(
                "the chat template rewrites earlier text when an answer is added, so answers cannot be told from "
                f"prompts: {asked[-60:]!r} became {whole[: len(asked)][-60:]!r}"
            )
        return [(asked, False), (whole[len(asked) :], True)]
