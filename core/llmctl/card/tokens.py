"""What a card says about tokenizers: facts that tokenizer files do not contain, and chat templates in files of the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmctl.io.typed import check_type

NAMING = ("special_tokens_map.json", "added_tokens.json", "tokenization_*.py")
"""Files of a folder that may mention tokens, besides tokenizer_config.json; code is read as text and never run."""


@dataclass(frozen=True)
class TokenFacts:
    """Facts about a family's tokenizer that are in no file of a model folder.

    Attributes:
        model: Name of the sentencepiece file.
        pattern: Regular expression of the pre-tokenizer, which splits text before BPE merges; empty = ByteLevel's.
        normal_form: Unicode normalization of text before that, such as ``"NFC"``.
        appended: Special tokens whose ids follow those of a sentencepiece or rank file, in order.
        optional: Special tokens that follow these, if a file of the folder mentions them.
        roles: Names of the tokens ``bos``, ``eos``, ``pad``, ``unk``; they override the folder's.
        speakers: Ids of tokens that begin a turn, by role, unless ``generation_config.json`` has ``ROLE_token_id``; chat
            templates get their names as ``ROLE_token``.
        prefix: Tokens before a text, unless ``tokenizer_config.json`` has ``add_bos_token``.
        bridge: Tokens between a prompt and its answer, instead of bos before the prompt.
        ends: Tokens that end an answer besides eos, if the tokenizer has them.
        offset: Key in ``tokenizer_config.json``, and default, of the number of ids before those of the sentencepiece file.
        written: Replacements in a text before encoding, in this order: (text, piece of the vocabulary), such as newline and ``<n>``.
        calls: How calls of functions are written, one of ``answers.CALL_FORMS``; empty = in no form of the family's own.
        thoughts: Text before and after a model's thoughts; empty = there are no such marks.
        paddlenlp: Class in ``paddlenlp.transformers`` to use instead of the readers here.
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
    calls: str = ""
    thoughts: tuple[str, ...] = ()
    paddlenlp: str = ""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TokenFacts:
        """Facts from the JSON form of their ``dataclasses.asdict``.

        Raises:
            TypeError: There is an unknown name.
            ValueError: A value is of another type.
        """
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
        }
        check_type(facts := cls(**values), cls)
        return replace(facts, written=tuple((text, piece) for text, piece in facts.written))

    def names_after(self, folder: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
        """The special tokens whose ids follow those of the file, for this folder.

        Args:
            folder: The model folder.
            config: Its ``tokenizer_config.json``; the chat template is not searched, since it may mention other tokens.
        """
        if not self.optional:
            return self.appended
        paths = [path for pattern in NAMING for path in sorted(folder.glob(pattern))]
        own = {key: value for key, value in config.items() if key != "chat_template"}
        texts = [json.dumps(own, ensure_ascii=False), *(path.read_text("utf-8", "replace") for path in paths)]
        return (*self.appended, *(name for name in self.optional if any(name in text for text in texts)))


@dataclass(frozen=True, kw_only=True)
class Wording:
    """What a tokenizer and its chat template need of a card, for folders that are used without the plugin.

    Attributes:
        name: The family's name.
        tokens: Facts that tokenizer files do not contain.
        chat_template: The family's own format, or None.
    """

    name: str
    tokens: TokenFacts
    chat_template: str | None


def template(card_file: str, name: str) -> str:
    """The text of the template ``name`` in the folder of a card, which passes its ``__file__``."""
    return Path(card_file).with_name(name).read_text(encoding="utf-8")


def word_pattern(digits: int) -> str:
    """The regular expression by which many byte-level tokenizers split text into words.

    Args:
        digits: Digits of a number that may be one word.
    """
    numbers = r"\p{N}" + (f"{{1,{digits}}}" if digits > 1 else "")
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + numbers
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
