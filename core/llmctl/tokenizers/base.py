"""What every tokenizer offers, and chat templates, which write conversations as token ids."""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path

from llmctl.errors import TokenizerError
from llmctl.io.copying import copy_into
from llmctl.tokenizers import protect
from llmctl.tokenizers.conversation import Conversation
from llmctl.tokenizers.special import Special, without_template
from llmctl.tokenizers.stream import DecodeStream

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

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to a text, its leading space among them; of a special token its name."""

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
    """Whether a rendered text is encoded in one go; otherwise each of its pieces is encoded separately."""

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
        """A user's text with marks in the names of special tokens, so that encoding treats them as text."""
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
            "leave it out, or train with the token in model.add_tokens, which gives the model a row for it"
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
        return DecodeStream(lambda ids: self.decode(ids, skip_special))

    def save(self, folder: Path) -> None:
        """Writes everything that loading again needs into an existing folder, the chosen chat template included."""
        for path in (path for pattern in FILES for path in self.folder.glob(pattern)):
            copy_into(path, folder)
        without_template(self.folder, folder)
        if self.chat_template:
            self.chat_template.save(folder)

    @cached_property
    def _special_names(self) -> re.Pattern[str]:
        return protect.any_of(self.special.ids)


Segment = tuple[list[int], bool]
"""(ids, whether they contribute to the loss)."""

Piece = tuple[str, int | None]
"""Text, and the index of the message if it is an answer."""

LAST_ONLY = (
    "the chat template writes earlier turns in another way once there are later ones, and marks no answers with "
    "{% generation %}: of a conversation with several turns only the answers of the last turn are trained on"
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
        """The whole text; where an answer is to be generated it ends right before that answer."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the template into a model folder."""

    def reads(self, name: str) -> bool:
        """Whether the template has a place for a value of this name."""
        return False

    def answers(self, conversation: Conversation) -> list[Piece] | None:
        """The whole text in pieces, if the template itself marks answers."""
        return None

    def prompt(self, conversation: Conversation) -> list[int]:
        """Ids that a model continues with its answer: the template is rendered once, over all messages.

        Args:
            conversation: What is to be answered; an answer that is its last message is left out.
        """
        asked = conversation.asked().map(self._tokenizer.protect)
        pieces = None if self._tokenizer.encodes_whole else self._all_answers(asked)
        ids = self._tokenizer.encode_pieces([(text, False) for text, _ in pieces or [(self.text(asked), None)]])
        return [*(token for run in ids for token in run), *self._tokenizer.special.bridge]

    def prefill(self, conversation: Conversation) -> list[int]:
        """Ids that a model continues within the conversation's last answer.

        Args:
            conversation: Its last message is an answer with a text.

        Raises:
            TokenizerError: The template does not write that text as it is.
        """
        safe = conversation.through(len(conversation.messages) - 1).map(self._tokenizer.protect)
        begun = safe.messages[-1].content or ""
        if self._tokenizer.special.bridge:  # the answer begins a text
            return [*self.prompt(conversation), *self._tokenizer.encode_pieces([(begun, False)])[0]]
        whole = self.text(safe)
        place = whole.rfind(begun)
        if not begun or place < 0:
            raise TokenizerError("the chat template does not write the last answer as it is, so it cannot be continued")
        ids = self._tokenizer.encode_pieces([(whole[: place + len(begun)], False)])
        return [token for run in ids for token in run]

    def segments(self, conversation: Conversation) -> list[Segment]:
        """Ids in order, each run with whether it is trained on: answers and tool calls are, where their message has ``train``.

        Answers are found by the template's own marks (``{% generation %}``), else by rendering message by message. A template
        that writes earlier turns in another way once there are later ones, such as one that leaves out old thoughts,
        gives the answers of the last turn only. Where a token covers the border of an earlier answer it counts as the
        answer's.

        Raises:
            TokenizerError: The text before the last answer changes when the answer is added.
        """
        safe = conversation.map(self._tokenizer.protect)
        bridge = self._tokenizer.special.bridge
        pieces = None if bridge else self.answers(safe) or self._all_answers(safe)
        if pieces is None:
            pieces = self._last_turn(safe, only_last=bool(bridge))
            found = [index for _, index in pieces if index is not None]
            if not bridge and any(m.is_answer and m.train for m in safe.messages[: min(found, default=0)]):
                warnings.warn(LAST_ONLY, UserWarning, stacklevel=2)
        marked = [(text, index is not None) for text, index in pieces]
        if bridge:  # the answer begins a text
            encoded = [ids for piece in marked for ids in self._tokenizer.encode_pieces([piece])]
            encoded[0] += bridge
        else:
            encoded = self._tokenizer.encode_pieces(marked)
        return [
            (ids, index is not None and safe.messages[index].train)
            for ids, (_, index) in zip(encoded, pieces, strict=True)
        ]

    def _all_answers(self, safe: Conversation) -> list[Piece] | None:
        """Text before and of each answer; None if a later message changes earlier text.

        An answer before any user message is no answer to a prompt, and part of the text.
        """
        pieces: list[Piece] = []
        done = ""
        for index in _answers(safe):
            for part, answer in ((safe.before(index), None), (safe.through(index), index)):
                text = self.text(part)
                if not text.startswith(done):
                    return None
                pieces.append((text[len(done) :], answer))
                done = text
        if not pieces or safe.add_generation_prompt:
            text = self.text(safe)
            if not text.startswith(done):
                return None
            pieces.append((text[len(done) :], None))
        return pieces

    def _last_turn(self, safe: Conversation, only_last: bool) -> list[Piece]:
        """Text before and of the answers of the last turn; those before the last answer only where they are written alike.

        Args:
            safe: The conversation.
            only_last: Whether to find the last answer only.
        """
        whole, answers = self.text(safe), [] if safe.add_generation_prompt else _answers(safe)
        latest = answers[-1:] if only_last else [index for index in answers if index >= safe.turn_starts()[-1]]
        spans: list[tuple[int, int, int]] = []
        for index in reversed(latest):
            before, through = self.text(safe.before(index)), self.text(safe.through(index))
            alike = whole.startswith(through) and through.startswith(before)
            if not alike and not spans:
                raise TokenizerError(
                    "the chat template rewrites earlier text when an answer is added, so answers cannot be distinguished from "
                    f"prompts: {before[-60:]!r} became {whole[: len(before)][-60:]!r}"
                )
            if not alike:
                break
            spans.insert(0, (len(before), len(through), index))
        return _cut(whole, spans)


def _answers(conversation: Conversation) -> list[int]:
    """Index of every answer to a user message."""
    messages = conversation.messages
    first = next((index for index, message in enumerate(messages) if message.role == "user"), len(messages))
    return [index for index, message in enumerate(messages) if message.is_answer and index > first]


def _cut(text: str, spans: Sequence[tuple[int, int, int]]) -> list[Piece]:
    """A text in pieces: around and inside spans, each with the index of its message."""
    pieces: list[Piece] = []
    done = 0
    for low, high, index in spans:
        pieces += [(text[done:low], None), (text[low:high], index)]
        done = high
    return [*pieces, (text[done:], None)] if done < len(text) or not pieces else pieces
