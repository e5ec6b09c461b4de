"""``tokenizer.model``, or the file of this kind that a card names, read by the library ``sentencepiece``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmctl.card.tokens import TokenFacts
from llmctl.errors import TokenizerError, require
from llmctl.io import json_object
from llmctl.tokenizers import special, token_names
from llmctl.tokenizers.base import Tokenizer
from llmctl.tokenizers.protect import any_of, cut_inside

SPACE = "\u2581"
ANCHOR = "\n"
"""A stand-in for the text before, where text continues; sentencepiece has no piece that joins it to others."""


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model, with the tokens that the card and other files of the folder add.

    Raises:
        TokenizerError: The file cannot be read.
    """

    def __init__(self, folder: Path, facts: TokenFacts):
        library = require("sentencepiece", "run", facts.model)
        path = folder / facts.model
        try:
            self._inner = library.SentencePieceProcessor(model_file=str(path))
            self._size = self._inner.get_piece_size()
            self._spaced = self._inner.encode("a", out_type=str)[0].startswith(SPACE)
            pieces = [self._inner.id_to_piece(token) for token in range(self._size)]
            if wrong := [
                p for i, p in enumerate(pieces) if self._inner.is_byte(i) and not token_names.BYTE.fullmatch(p)
            ]:
                raise ValueError(f"{wrong[0]!r} is no byte")
        except (RuntimeError, OSError, ValueError, IndexError) as error:
            raise TokenizerError(f"{path} is no sentencepiece model: {error}") from None
        config = json_object.read_json(folder / special.CONFIG)
        self._prefixed = self._spaced and config.get("add_prefix_space") is not False
        self._offset = _offset(folder, config, facts)
        self._written = facts.written
        self._texts = {piece: text for text, piece in facts.written}
        self._appended = {
            name: self._offset + self._size + i for i, name in enumerate(facts.names_after(folder, config))
        }
        own = {self._inner.id_to_piece(i): self._offset + i for i in range(self._size) if self._is_control(i)}
        vocabulary = special.Vocabulary(self._id_of, self._name_of, {**own, **self._appended})
        super().__init__(folder, special.read(folder, vocabulary, facts))
        self._names = {token: name for name, token in {**self.special.added, **self.special.ids}.items()}
        self._special_ids = frozenset(self.special.ids.values())
        self._added = any_of(self.special.added)
        self._forgeable = any_of(filter(self._is_forgeable, self.special.ids))

    @property
    def vocab_size(self) -> int:
        """The highest id plus one."""
        return max([self._offset + self._size - 1, *self._names]) + 1

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids; the space that begins a text is left out."""
        parts: list[bytes] = []
        for token in ids:
            if token in self._names:
                if not (skip_special and token in self._special_ids):
                    parts.append(self._names[token].encode())
            elif 0 <= token - self._offset < self._size:
                parts.append(self._bytes(token - self._offset, first=not parts))
        return b"".join(parts).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """As `Tokenizer.token_bytes`."""
        if token in self._names:
            return self._names[token].encode()
        piece = token - self._offset
        return self._bytes(piece, first=False) if 0 <= piece < self._size else b""

    def _encode(self, text: str, start: bool) -> list[int]:
        ids: list[int] = []
        for index, part in enumerate(self._added.split(text)):
            if index % 2:
                ids.append(self.special.added[part])
                continue
            for place, piece in enumerate(cut_inside(self._forgeable, part)):
                if piece:
                    ids += self._pieces(piece, start and index == 0 and place == 0)
        return ids

    def _pieces(self, text: str, start: bool) -> list[int]:
        if self._spaced and not (start and self._prefixed):
            anchor, ids = self._ids(ANCHOR), self._ids(ANCHOR + text)
            if ids[: len(anchor)] == anchor:
                return ids[len(anchor) :]
        return self._ids(text)

    def _ids(self, text: str) -> list[int]:
        for plain, piece in self._written:
            text = text.replace(plain, piece)
        return [self._offset + token for token in self._inner.encode(text)]

    def _bytes(self, token: int, first: bool) -> bytes:
        if self._inner.is_byte(token):
            return bytes([int(self._inner.id_to_piece(token)[3:-1], 16)])
        piece = self._inner.id_to_piece(token)
        if piece in self._texts:
            return self._texts[piece].encode()
        text = piece.replace(SPACE, " ")
        return (text.removeprefix(" ") if first and self._prefixed else text).encode()

    def _is_control(self, token: int) -> bool:
        return bool(self._inner.is_control(token) or self._inner.is_unknown(token))

    def _is_forgeable(self, name: str) -> bool:
        """Whether sentencepiece takes the name in a text for the special token."""
        return len(name) > 1 and self.special.ids[name] in self._ids(name)

    def _id_of(self, name: str) -> int | None:
        if name in self._appended:
            return self._appended[name]
        token = self._inner.piece_to_id(name)
        return self._offset + int(token) if self._inner.id_to_piece(token) == name else None

    def _name_of(self, token: int) -> str | None:
        piece = token - self._offset
        return str(self._inner.id_to_piece(piece)) if 0 <= piece < self._size else None


def _offset(folder: Path, config: Mapping[str, Any], facts: TokenFacts) -> int:
    key, default = facts.offset
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TokenizerError(f"{folder / special.CONFIG}: {key} must be a whole number from 0, not {value!r}")
    return value
