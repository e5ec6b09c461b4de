"""``tokenizer.model``, read by the library ``sentencepiece``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from llmctl.errors import TokenizerError, require
from llmctl.tokenizers import special
from llmctl.tokenizers.base import Tokenizer

SPACE = "\u2581"
ANCHOR = "\n"
"""Text that stands for what went before, where text continues; sentencepiece has no piece that joins it to others."""


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model, with the tokens that other files of the folder add.

    Raises:
        TokenizerError: The file cannot be read.
    """

    def __init__(self, folder: Path):
        library = require("sentencepiece", "cpu", "tokenizer.model")
        try:
            self._inner = library.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        except (RuntimeError, OSError) as error:
            raise TokenizerError(f"{folder / 'tokenizer.model'} is no sentencepiece model: {error}") from None
        self._size = self._inner.get_piece_size()
        own = {self._inner.id_to_piece(i): i for i in range(self._size) if self._is_control(i)}
        super().__init__(folder, special.read(folder, self._id_of, own, lambda config: None))
        self._spaced = self._inner.encode("a", out_type=str)[0].startswith(SPACE)
        self._names = {token: name for name, token in {**self.special.added, **self.special.ids}.items()}
        self._special_ids = frozenset(self.special.ids.values())
        self._added = (
            re.compile("(" + "|".join(map(re.escape, self.special.added)) + ")") if self.special.added else None
        )

    @property
    def vocab_size(self) -> int:
        """The highest id plus one."""
        return max([self._size - 1, *self._names]) + 1

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids; the space that begins a text is left out."""
        parts: list[bytes] = []
        for token in ids:
            if token in self._names:
                if not (skip_special and token in self._special_ids):
                    parts.append(self._names[token].encode())
            elif token < self._size:
                parts.append(self._bytes(token, first=not parts))
        return b"".join(parts).decode("utf-8", errors="replace")

    def _encode(self, text: str, start: bool) -> list[int]:
        if self._added is None:
            return self._pieces(text, start)
        ids: list[int] = []
        for index, part in enumerate(self._added.split(text)):
            if index % 2:
                ids.append(self.special.added[part])
            elif part:
                ids += self._pieces(part, start and index == 0)
        return ids

    def _pieces(self, text: str, start: bool) -> list[int]:
        if start or not self._spaced:
            return list(self._inner.encode(text))
        anchor = self._inner.encode(ANCHOR)
        ids = self._inner.encode(ANCHOR + text)
        return list(ids[len(anchor) :]) if ids[: len(anchor)] == anchor else list(self._inner.encode(text))

    def _bytes(self, token: int, first: bool) -> bytes:
        if self._inner.is_byte(token):
            return bytes([int(self._inner.id_to_piece(token)[3:-1], 16)])
        text = self._inner.id_to_piece(token).replace(SPACE, " ")
        return (text.removeprefix(" ") if first and self._spaced else text).encode()

    def _is_control(self, token: int) -> bool:
        return bool(self._inner.is_control(token) or self._inner.is_unknown(token))

    def _id_of(self, name: str) -> int | None:
        token = self._inner.piece_to_id(name)
        return int(token) if self._inner.id_to_piece(token) == name else None
