"""Tokenizers that the library ``tokenizers`` runs, whichever file they were read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmctl.card.tokens import TokenFacts
from llmctl.errors import TokenizerError, require
from llmctl.tokenizers import special
from llmctl.tokenizers.base import Tokenizer

ANCHOR = "\n"
"""Text that stands for what went before, where text continues; tokenizers that begin a text with a space never join it
to what follows."""


class LibraryTokenizer(Tokenizer):
    """A tokenizer of the library.

    Args:
        folder: The model folder.
        inner: The library's object.
        facts: What the card says.
        adds_bos: Whether bos comes before a text where no file says anything about it; None = as ``inner`` does.
    """

    def __init__(self, folder: Path, inner: Any, facts: TokenFacts, adds_bos: bool | None = None):
        self._inner = inner
        self._inner.no_truncation()
        self._inner.no_padding()
        own = {t.content: i for i, t in self._inner.get_added_tokens_decoder().items() if t.special}
        affixes = self._affixes() if adds_bos is None else None
        vocabulary = special.Vocabulary(inner.token_to_id, inner.id_to_token, own, affixes, bool(adds_bos))
        super().__init__(folder, special.read(folder, vocabulary, facts))
        self._add(self.special.ids)
        self._inner.encode_special_tokens = True
        self._spaced = self._tokens("a")[:1] == ["▁a"] or self._tokens("a")[:1] == ["▁"]

    @property
    def vocab_size(self) -> int:
        """The highest id plus one."""
        return max([*self._inner.get_vocab().values(), *self.special.ids.values(), -1]) + 1

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids."""
        return str(self._inner.decode(list(ids), skip_special_tokens=skip_special))

    def _encode(self, text: str, start: bool) -> list[int]:
        if start or not self._spaced:
            return self._ids(text)
        anchor, ids = self._ids(ANCHOR), self._ids(ANCHOR + text)
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def _tokens(self, text: str) -> list[str]:
        return list(self._inner.encode(text, add_special_tokens=False).tokens)

    def _add(self, ids: Mapping[str, int]) -> None:
        """Tells the library which of its tokens are special, where only other files say so."""
        known = {name: token for name, token in ids.items() if self._inner.token_to_id(name) == token}
        library = require("tokenizers", "cpu", "the tokenizer")
        self._inner.add_special_tokens([library.AddedToken(name, special=True, normalized=False) for name in known])

    def _affixes(self) -> special.Affixes:
        with_special = self._inner.encode("a").ids
        body = self._ids("a")
        start = next((i for i in range(len(with_special)) if with_special[i : i + len(body)] == body), 0)
        return tuple(with_special[:start]), tuple(with_special[start + len(body) :])


def read_json(folder: Path, facts: TokenFacts) -> LibraryTokenizer:
    """The tokenizer that ``tokenizer.json`` describes.

    Raises:
        TokenizerError: The file cannot be read.
    """
    path = folder / "tokenizer.json"
    library = require("tokenizers", "cpu", path.name)
    try:
        inner = library.Tokenizer.from_file(str(path))
    except Exception as error:
        # The library raises plain Exception for every kind of damage.
        raise TokenizerError(f"{path} cannot be read: {error}") from None
    return LibraryTokenizer(folder, inner, facts)
