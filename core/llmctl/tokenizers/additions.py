"""Adding tokens to the files of a tokenizer, as transformers writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.io.json_object import read_json, write_json
from llmctl.tokenizers.special import CONFIG

JSON, ADDED = "tokenizer.json", "added_tokens.json"


@dataclass(frozen=True)
class NewToken:
    """A token to add.

    Attributes:
        text: Its text.
        id: Its id.
        special: Whether it is a special token: left out by decoding, and not produced by a user's text.
    """

    text: str
    id: int
    special: bool = False

    @property
    def row(self) -> dict[str, Any]:
        """The token as files describe it: flags are those of transformers' ``add_tokens``."""
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not self.special}
        return {"content": self.text, **flags, "special": self.special}


def add_to_files(folder: Path, tokens: Sequence[NewToken]) -> None:
    """Adds tokens to every file of a folder that lists added tokens.

    ``tokenizer.json`` if there is one; ``added_tokens_decoder`` in ``tokenizer_config.json`` if it has one or there is no
    ``tokenizer.json``; ``added_tokens.json`` if there is one. Other keys stay.
    """
    library = folder / JSON
    if library.is_file():
        content = read_json(library, required=True)
        rows = [*(content.get("added_tokens") or ()), *({"id": token.id, **token.row} for token in tokens)]
        write_json(library, {**content, "added_tokens": rows})
    config: Mapping[str, Any] = read_json(folder / CONFIG)
    if "added_tokens_decoder" in config or not library.is_file():
        decoder = {**(config.get("added_tokens_decoder") or {}), **{str(token.id): token.row for token in tokens}}
        write_json(folder / CONFIG, {**config, "added_tokens_decoder": decoder})
    if (folder / ADDED).is_file():
        write_json(folder / ADDED, {**read_json(folder / ADDED), **{token.text: token.id for token in tokens}})
