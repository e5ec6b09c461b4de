"""What every tokenizer offers, and decoding token by token."""

from __future__ import annotations

import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from llmctl.errors import TokenizerError
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
        return self.special.eos_ids

    @property
    def unk_id(self) -> int | None:
        """Id of what has no other token."""
        return self.special.unk_id

    @property
    def pad_id(self) -> int:
        """Id to fill rows with: pad, else eos, else unk, else 0. It is masked wherever it is used."""
        candidates = (self.special.pad_id, self.special.eos_id, self.special.unk_id)
        return next((token for token in candidates if token is not None), 0)

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False, start: bool = True) -> list[int]:
        """Ids of a text.

        Args:
            text: Any text.
            add_special: Whether the ids that the tokenizer puts around a prompt (usually bos) are added.
            parse_special: Whether names of special tokens in the text stand for these tokens; otherwise they are text.
            start: Whether this is the beginning of a text, where some tokenizers put a space.
        """
        ids = self.encode_marked(text, "", start) if parse_special else self._encode(text, start)
        special = self.special
        return [*special.prefix, *ids, *special.bridge, *special.suffix] if add_special else ids

    def encode_marked(self, text: str, mark: str, start: bool = True) -> list[int]:
        """Ids of a text with special tokens, from which ``mark`` is removed after they are found.

        A mark inside the name of a special token thus keeps it plain text.
        """
        ids: list[int] = []
        for index, part in enumerate(self._special_names.split(text)):
            if index % 2:
                ids.append(self.special.ids[part])
            elif part:
                plain = part.replace(mark, "") if mark else part
                ids += self._encode(plain, start if index == 0 else self.special.space_after_special)
        return ids

    def starts_anew_after(self, text: str) -> bool:
        """Whether what follows this text begins as a text does, because the text ends in a special token."""
        return self.special.space_after_special and not self._special_names.split(text)[-1]

    def names_in(self, text: str) -> list[str]:
        """Names of special tokens that occur in a text."""
        return self._special_names.findall(text)

    def stream(self, skip_special: bool = True) -> DecodeStream:
        """A decoder that takes ids one by one."""
        return DecodeStream(self, skip_special)

    def save(self, folder: Path) -> None:
        """Writes everything that loading again needs into an existing folder, the chosen chat template included."""
        for path in (path for pattern in FILES for path in self.folder.glob(pattern)):
            shutil.copyfile(path, folder / path.name)
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


MARK = "\ue0f2"
"""A character for private use, put inside names of special tokens that a person wrote."""


Turn = tuple[str, str | None]


@dataclass(frozen=True)
class Conversation:
    """Turns of a user and a bot; the answer of the last turn is None where it is to be generated."""

    turns: tuple[Turn, ...]
    system: str | None = None


class ChatTemplate(ABC):
    """A template for one tokenizer.

    Args:
        tokenizer: Whose special tokens the template writes.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    @abstractmethod
    def text(self, conversation: Conversation) -> str:
        """The whole text; where the last answer is None it ends right before that answer."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the template into a model folder."""

    def segments(self, conversation: Conversation) -> list[tuple[list[int], bool]]:
        """Ids in order, each run with whether it is an answer (and so carries loss).

        Raises:
            TokenizerError: The template changes text of earlier turns when later ones are added.
        """
        safe = self._marked(conversation)
        if self._tokenizer.special.bridge:
            return self._bridged(safe)
        runs: list[tuple[list[int], bool]] = []
        done = ""
        for count, (user, answer) in enumerate(safe.turns, 1):
            before = safe.turns[: count - 1]
            for turn in ((user, None), (user, answer)) if answer is not None else ((user, None),):
                text = self.text(replace(safe, turns=(*before, turn)))
                if not text.startswith(done):
                    raise TokenizerError(
                        "the chat template rewrites earlier text when a turn is added, so answers cannot be told from "
                        f"prompts: {done[-60:]!r} became {text[: len(done)][-60:]!r}"
                    )
                start = not done or self._tokenizer.starts_anew_after(done)
                ids = self._tokenizer.encode_marked(text[len(done) :], MARK, start)
                runs.append((ids, turn[1] is not None))
                done = text
        return runs

    def prompt(self, conversation: Conversation) -> list[int]:
        """Ids that a model continues with its answer to the last turn."""
        turns = (*conversation.turns[:-1], (conversation.turns[-1][0], None))
        return [token for ids, _ in self.segments(replace(conversation, turns=turns)) for token in ids]

    def _bridged(self, safe: Conversation) -> list[tuple[list[int], bool]]:
        """A prompt of all turns as one text, the tokens after a prompt, and the last answer, which begins a text."""
        user, answer = safe.turns[-1]
        asked = self.text(replace(safe, turns=(*safe.turns[:-1], (user, None))))
        prompt = [*self._tokenizer.encode_marked(asked, MARK), *self._tokenizer.special.bridge]
        if answer is None:
            return [(prompt, False)]
        whole = self.text(safe)
        if not whole.startswith(asked):
            raise TokenizerError(f"the chat template rewrites the prompt when its answer is added: {asked[-60:]!r}")
        return [(prompt, False), (self._tokenizer.encode_marked(whole[len(asked) :], MARK), True)]

    def _marked(self, conversation: Conversation) -> Conversation:
        turns = tuple((self._mark(user), answer if answer is None else self._mark(answer))
                      for user, answer in conversation.turns)  # fmt: skip
        system = conversation.system
        return Conversation(turns, system if system is None else self._mark(system))

    def _mark(self, text: str) -> str:
        text = text.replace(MARK, "")
        for name in sorted(set(self._tokenizer.names_in(text)), key=len, reverse=True):
            text = text.replace(name, name[0] + MARK + name[1:])
        return text
