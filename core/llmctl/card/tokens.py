"""What a card says of text: what tokenizer files leave to the family's code, and chat formats in files beside the card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMING = ("special_tokens_map.json", "added_tokens.json", "tokenization_*.py")
"""Files of a folder that may name tokens, beside tokenizer_config.json; code is read as text and never run."""


@dataclass(frozen=True)
class TokenFacts:
    """Facts of a family's tokenizer that stand in no file of a model folder.

    Attributes:
        model: Name of the sentencepiece file.
        pattern: Regular expression that cuts text into words before byte pairs are merged; empty = that of ByteLevel.
        normal_form: Unicode normal form of text before it is cut, such as ``"NFC"``.
        appended: Names of special tokens whose ids follow those of a sentencepiece or rank file, in order.
        optional: Names that follow these, where a file of the folder mentions them.
        roles: Names of the tokens ``bos``, ``eos``, ``pad``, ``unk``; they go before what the folder says.
        speakers: Ids of tokens that begin a turn, by role, unless ``generation_config.json`` gives ``ROLE_token_id``;
            chat templates find their names as ``ROLE_token``.
        prefix: Names of tokens before a text, unless ``tokenizer_config.json`` states ``add_bos_token``.
        bridge: Names of tokens between a prompt and its answer, instead of bos before them.
        ends: Names of tokens that end an answer beside eos, where the tokenizer has them.
        offset: Key in ``tokenizer_config.json`` and default of the number of ids before those of the sentencepiece file.
        written: Text, and the name of the piece that is written for it, in the order in which they are replaced.
        paddlenlp: Class in ``paddlenlp.transformers`` to use instead of any reader here.
    """

    model: str = "tokenizer.model"
    pattern: str = ""
    normal_form: str = ""
    appended: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    roles: Mapping[str, str] = field(default_factory=dict)
    speakers: Mapping[str, int] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    bridge: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    offset: tuple[str, int] = ("", 0)
    written: tuple[tuple[str, str], ...] = ()
    paddlenlp: str = ""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TokenFacts:
        """Facts as ``dataclasses.asdict`` and JSON leave them.

        Raises:
            TypeError: There is a name that is no fact.
        """
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
        }
        written = tuple((str(text), str(piece)) for text, piece in values.pop("written", ()))
        return cls(**values, written=written)

    def names_after(self, folder: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
        """The names whose ids follow those of the file, for this folder.

        Args:
            folder: The model folder.
            config: Its ``tokenizer_config.json``, whose chat template is not asked: it may name what others have.
        """
        if not self.optional:
            return self.appended
        paths = [path for pattern in NAMING for path in sorted(folder.glob(pattern))]
        own = {key: value for key, value in config.items() if key != "chat_template"}
        texts = [json.dumps(own, ensure_ascii=False), *(path.read_text("utf-8", "replace") for path in paths)]
        return (*self.appended, *(name for name in self.optional if any(name in text for text in texts)))


@dataclass(frozen=True, kw_only=True)
class Wording:
    """What a tokenizer and its chat template take from a card, for folders that are used without the plugin.

    Attributes:
        name: The family's name.
        tokens: What tokenizer files leave to the family's code.
        chat_template: The family's own format, or None.
    """

    name: str
    tokens: TokenFacts
    chat_template: str | None


def template(card_file: str, name: str) -> str:
    """The text of the template ``name`` in the folder of a card, which passes its ``__file__``."""
    return Path(card_file).with_name(name).read_text(encoding="utf-8")
