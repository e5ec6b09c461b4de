"""Special tokens of a model folder: their names and ids, gathered from the several files that may give them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmctl.card.tokens import TokenFacts
from llmctl.errors import TokenizerError
from llmctl.io.json_object import read_json, write_json

CONFIG, TEMPLATE_KEY = "tokenizer_config.json", "chat_template"
ROLES = ("bos", "eos", "pad", "unk")


@dataclass(frozen=True)
class Special:
    """Special tokens.

    Attributes:
        ids: Id by name, of every token that is not made of text.
        added: Id by name, of tokens that were added and are text.
        bos_id: Begins a text.
        eos_id: Ends a text.
        pad_id: Fills rows.
        unk_id: What has no other token.
        eos_ids: All that end a generated text.
        named: Names of tokens that chat templates may use, by variable, such as ``user_token``.
        prefix: Put before a text.
        bridge: Put between a prompt and its answer; where there is one, a prompt is one whole and has one answer.
        suffix: Put after a text.
        space_after_special: Whether text after a special token begins as a text does (with a space, in some).
    """

    ids: Mapping[str, int]
    added: Mapping[str, int]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int | None
    eos_ids: tuple[int, ...]
    named: Mapping[str, str]
    prefix: tuple[int, ...]
    bridge: tuple[int, ...]
    suffix: tuple[int, ...]
    space_after_special: bool


Affixes = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer's own file says.

    Attributes:
        id_of: Id of a token's name, if it has one.
        name_of: Name of an id, if there is such a token.
        own: Special tokens that the file declares.
        added: Tokens that it adds and that are text.
        affixes: What the file puts before and after a text, if it says so.
        adds_bos: Whether bos comes before a text where nothing is said about it.
        is_text: Whether text may give an id.
    """

    id_of: Callable[[str], int | None]
    name_of: Callable[[int], str | None]
    own: Mapping[str, int]
    added: Mapping[str, int] = field(default_factory=dict)
    affixes: Affixes | None = None
    adds_bos: bool = True
    is_text: Callable[[int], bool] = lambda token: True


def read(folder: Path, vocabulary: Vocabulary, facts: TokenFacts) -> Special:
    """The special tokens of a folder.

    Args:
        folder: The model folder.
        vocabulary: What the tokenizer's file says.
        facts: What the card says.

    Ids in ``config.json`` and ``generation_config.json`` say what ends and fills; they never make a token special that text
    gives.

    Raises:
        TokenizerError: A file is not valid JSON or names a token that has no id.
    """
    config = read_json(folder / CONFIG)
    generation = read_json(folder / "generation_config.json")
    finder = _Finder(folder, config, vocabulary)
    names = {**read_json(folder / "special_tokens_map.json"), **config}
    roles: dict[str, int | None] = {}
    for role in ROLES:
        token = finder.find(facts.roles.get(role))
        roles[role] = finder.role(role, names.get(f"{role}_token")) if token is None else token
    for extra in names.get("additional_special_tokens") or ():
        finder.find(extra)
    model = read_json(folder / "config.json")
    for role in ("bos", "eos", "pad"):
        token = next(iter(_ids(model.get(f"{role}_token_id"))), None)
        name = finder.name(token)
        if roles[role] is None and token is not None and name is not None:
            roles[role] = token if vocabulary.is_text(token) else finder.find(name)
    named = {key: name for key, value in names.items() if key.endswith("_token") and (name := _content(value))}
    named |= {f"{role}_token": name for role, token in roles.items() if (name := finder.special_name(token))}
    for role, token in facts.speakers.items():
        token = generation.get(f"{role}_token_id", token)
        if name := finder.name(token):
            finder.find(name)
            named[f"{role}_token"] = name
    ends = [roles["eos"], *_end_ids(folder, generation, model, finder), *(finder.find(name) for name in facts.ends)]
    bridge = [finder.find(name, "the card's token") for name in facts.bridge]
    prefix, suffix = _affixes(config, roles, vocabulary, facts, [finder.find(name) for name in facts.prefix])
    return Special(
        ids=finder.ids,
        added={name: token for name, token in finder.added.items() if name not in finder.ids},
        bos_id=roles["bos"],
        eos_id=roles["eos"],
        pad_id=roles["pad"],
        unk_id=roles["unk"],
        eos_ids=tuple(dict.fromkeys(token for token in ends if token is not None)),
        named=named,
        prefix=prefix,
        bridge=tuple(token for token in bridge if token is not None),
        suffix=suffix,
        space_after_special=config.get("legacy") is not False,
    )


class _Finder:
    """Ids of special tokens by name; every token that is found counts as special from then on."""

    def __init__(self, folder: Path, config: Mapping[str, Any], vocabulary: Vocabulary):
        self._folder, self._vocabulary = folder, vocabulary
        text, special = added_tokens(folder, config)
        self.ids = {**vocabulary.own, **special}
        self.added = {name: token for name, token in {**vocabulary.added, **text}.items() if name not in self.ids}

    def find(self, token: Any, required: str = "") -> int | None:
        """The id of a token as a file writes it; None if it names none, or if it has no id and is not required."""
        name = _content(token)
        if name is None:
            return None
        found = {**self.added, **self.ids}.get(name, self._vocabulary.id_of(name))
        if found is not None:
            self.ids[name] = found
        elif required:
            raise TokenizerError(f"{self._folder}: {required} {name!r} has no id in the tokenizer")
        return found

    def role(self, role: str, token: Any) -> int | None:
        """The id of the token that a file names for a role; one that only fills or stands in may have none."""
        if role in ("bos", "eos"):
            return self.find(token, f"{role}_token")
        found = self.find(token)
        if found is None and _content(token) is not None:
            warnings.warn(
                f"{self._folder}: {role}_token {_content(token)!r} has no id in the tokenizer and is left out",
                UserWarning,
                stacklevel=2,
            )
        return found

    def name(self, token: int | None) -> str | None:
        """The name of an id, if it is one of the tokenizer's."""
        return None if token is None or token < 0 else self._vocabulary.name_of(token)

    def special_name(self, token: int | None) -> str | None:
        """The name of an id that is a special token's."""
        return next((name for name, number in self.ids.items() if number == token), None)


def without_template(source: Path, target: Path) -> None:
    """Copies ``tokenizer_config.json``, if there is one, without the chat template in it."""
    if (source / CONFIG).is_file():
        config = {key: value for key, value in read_json(source / CONFIG).items() if key != TEMPLATE_KEY}
        write_json(target / CONFIG, config)


def added_tokens(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Ids by name of the tokens that files add to a vocabulary: those that are text, and special ones."""
    added: dict[str, int] = {}
    special: dict[str, int] = {}
    decoder = config.get("added_tokens_decoder") or {}
    try:
        for token, row in decoder.items():
            (special if row.get("special") else added)[str(row["content"])] = int(token)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise TokenizerError(
            f"{folder / CONFIG}: added_tokens_decoder must have an object with content and special for each id"
        ) from None
    for name, token in read_json(folder / "added_tokens.json").items():
        if name not in special:
            added[name] = token
    return added, special


def _affixes(
    config: Mapping[str, Any],
    roles: Mapping[str, int | None],
    vocabulary: Vocabulary,
    facts: TokenFacts,
    prefix: Sequence[int | None],
) -> Affixes:
    """What tokenizer_config.json states of bos and of eos goes first, then the card, then the tokenizer's file.

    An absent or null ``add_bos_token`` or ``add_eos_token`` states nothing.
    """
    bos, eos = ((token,) if (token := roles[role]) is not None else () for role in ("bos", "eos"))
    before, after = vocabulary.affixes or (bos if vocabulary.adds_bos else (), ())
    if (prefix or facts.bridge) and None not in prefix:
        before, after = tuple(token for token in prefix if token is not None), ()
    adds_bos, adds_eos = (config.get(f"add_{role}_token") for role in ("bos", "eos"))
    if isinstance(adds_bos, bool):
        before = (bos if before != bos else before) if adds_bos else ()
    if isinstance(adds_eos, bool):
        after = eos if adds_eos else ()
    return before, after


def _end_ids(folder: Path, generation: Mapping[str, Any], model: Mapping[str, Any], finder: _Finder) -> list[int]:
    """What ends a generated text: by generation_config.json, else by config.json."""
    for content, name in ((generation, "generation_config.json"), (model, "config.json")):
        ids = _ids(content.get("eos_token_id"))
        if foreign := [token for token in ids if finder.name(token) is None]:
            warnings.warn(
                f"{folder / name}: eos_token_id {', '.join(map(str, foreign))} is not in the vocabulary and is left out",
                UserWarning,
                stacklevel=2,
            )
        if ids:
            return [token for token in ids if token not in foreign]
    return []


def _content(token: Any) -> str | None:
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [token for token in values if isinstance(token, int) and not isinstance(token, bool)]
