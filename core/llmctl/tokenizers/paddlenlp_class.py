"""Tokenizers that only PaddleNLP's own code reads: one adapter to its tokenizer classes.

It is used where a card names such a class, and for a folder that names one in ``tokenizer_config.json`` and has no file
that is read here. PaddleNLP is imported nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmctl.card.tokens import TokenFacts
from llmctl.errors import TokenizerError, require
from llmctl.tokenizers import special, token_names
from llmctl.tokenizers.base import Tokenizer
from llmctl.tokenizers.protect import any_of, cut_inside


class PaddleNLPTokenizer(Tokenizer):
    """A tokenizer of ``paddlenlp.transformers``.

    Args:
        folder: The model folder.
        name: Name of the class.
        facts: What the card says.
        reason: Why PaddleNLP is needed, for the message where it is not installed.

    Raises:
        TokenizerError: There is no such class, or it cannot read the folder.
        MissingDependencyError: PaddleNLP is not installed.
    """

    def __init__(self, folder: Path, name: str, facts: TokenFacts, reason: str = ""):
        library = require("paddlenlp.transformers", "paddlenlp", f"{reason}The class {name}")
        found = getattr(library, name, None)
        if found is None:
            raise TokenizerError(f"{folder} names the tokenizer {name}, which paddlenlp.transformers does not have")
        try:
            self._inner = found.from_pretrained(str(folder))
        except Exception as error:
            # Its classes raise whatever their files lead to.
            raise TokenizerError(f"{name} of PaddleNLP cannot read {folder}: {error}") from None
        own = {text: self._inner.convert_tokens_to_ids(text) for text in self._inner.all_special_tokens}
        vocabulary = special.Vocabulary(self._id_of, self._name_of, own, affixes=self._affixes())
        super().__init__(folder, special.read(folder, vocabulary, facts))
        self._forgeable = any_of(self.special.ids)

    @property
    def vocab_size(self) -> int:
        """The highest id plus one."""
        return max([len(self._inner) - 1, *self.special.ids.values()]) + 1

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids."""
        return str(self._inner.decode(list(ids), skip_special_tokens=skip_special))

    def token_bytes(self, token: int) -> bytes:
        """As `Tokenizer.token_bytes`."""
        name = self._name_of(token)
        if name is None:
            return b""
        known = token in self.special.ids.values()
        return name.encode() if known else token_names.bytes_of(name, hasattr(self._inner, "byte_encoder"))

    def save(self, folder: Path) -> None:
        """Writes the files that the class itself writes, and the chat template."""
        self._inner.save_pretrained(str(folder))
        super().save(folder)

    def _encode(self, text: str, start: bool) -> list[int]:
        return [token for part in cut_inside(self._forgeable, text) if part for token in self._ids(part, False)]

    def _ids(self, text: str, special_tokens: bool) -> list[int]:
        return list(self._inner(text, add_special_tokens=special_tokens)["input_ids"])

    def _affixes(self) -> special.Affixes:
        body, whole = self._ids("a", False), self._ids("a", True)
        start = next((i for i in range(len(whole)) if whole[i : i + len(body)] == body), 0)
        return tuple(whole[:start]), tuple(whole[start + len(body) :])

    def _id_of(self, name: str) -> int | None:
        token = self._inner.convert_tokens_to_ids(name)
        return int(token) if self._name_of(token) == name else None

    def _name_of(self, token: int) -> str | None:
        return str(self._inner.convert_ids_to_tokens(token)) if 0 <= token < len(self._inner) else None
