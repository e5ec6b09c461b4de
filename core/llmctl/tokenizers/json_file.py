"""``tokenizer.json``, read by the library ``tokenizers``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmctl.errors import TokenizerError, require
from llmctl.tokenizers import special
from llmctl.tokenizers.base import Tokenizer

ANCHOR = "\n"
"""Text that stands for what went before, where text continues; tokenizers that begin a text with a space never join it
to what follows."""


class JsonTokenizer(Tokenizer):
    """A tokenizer described by ``tokenizer.json``.

    Raises:
        TokenizerError: The file cannot be read.
    """

    def __init__(self, folder: Path):
        library = require("tokenizers", "cpu", "tokenizer.json")
        try:
            self._inner = library.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:
            # The library raises plain Exception for every kind of damage.
            raise TokenizerError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from None
        self._inner.no_truncation()
        self._inner.no_padding()
        own = {t.content: i for i, t in self._inner.get_added_tokens_decoder().items() if t.special}
        super().__init__(folder, special.read(folder, self._inner.token_to_id, own, self._affixes))
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

    def _affixes(self, config: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        if "add_bos_token" in config or "add_eos_token" in config:
            return None
        with_special = self._inner.encode("a").ids
        body = self._ids("a")
        start = next((i for i in range(len(with_special)) if with_special[i : i + len(body)] == body), 0)
        return tuple(with_special[:start]), tuple(with_special[start + len(body) :])
