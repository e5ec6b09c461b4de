"""Special tokens of a model folder: their names and ids, gathered from the several files that may give them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.errors import TokenizerError

CONFIG, TEMPLATE_KEY = "tokenizer_config.json", "chat_template"


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
        prefix: Put before a text.
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
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    space_after_special: bool


def read(
    folder: Path,
    id_of: Callable[[str], int | None],
    own: Mapping[str, int],
    affixes: Callable[[Mapping[str, Any]], tuple[tuple[int, ...], tuple[int, ...]] | None],
) -> Special:
    """The special tokens of a folder.

    Args:
        folder: The model folder.
        id_of: Id of a token's name in the tokenizer's file, if it has one.
        own: Special tokens that the tokenizer's file itself declares.
        affixes: What the tokenizer's file puts around a text, given ``tokenizer_config.json``; None = by that file.

    Raises:
        TokenizerError: A file is not valid JSON or names a token that has no id.
    """
    config = read_json(folder / CONFIG)
    names = {**read_json(folder / "special_tokens_map.json"), **config}
    added, special = _added(folder, config)
    ids = {**own, **special}

    def find(role: str) -> int | None:
        name = _content(names.get(f"{role}_token"))
        if name is None:
            return None
        token = {**added, **ids}.get(name, id_of(name))
        if token is None:
            raise TokenizerError(f"{folder}: {role}_token {name!r} has no id in the tokenizer")
        ids[name] = token
        return token

    roles = {role: find(role) for role in ("bos", "eos", "pad", "unk")}
    for extra in names.get("additional_special_tokens") or ():
        name = _content(extra)
        token = {**added, **ids}.get(name, id_of(name)) if name else None
        if name and token is not None:
            ids[name] = token
    generation = read_json(folder / "generation_config.json")
    model = read_json(folder / "config.json")
    for role in ("bos", "eos"):
        if roles[role] is None:
            roles[role] = next(iter(_ids(model.get(f"{role}_token_id"))), None)
    ends = [roles["eos"], *_ids(generation.get("eos_token_id"))]
    prefix, suffix = affixes(config) or _configured_affixes(config, roles)
    return Special(
        ids=ids,
        added={name: token for name, token in added.items() if name not in ids},
        bos_id=roles["bos"],
        eos_id=roles["eos"],
        pad_id=roles["pad"],
        unk_id=roles["unk"],
        eos_ids=tuple(dict.fromkeys(token for token in ends if token is not None)),
        prefix=prefix,
        suffix=suffix,
        space_after_special=config.get("legacy") is not False,
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file.

    Raises:
        TokenizerError: The file is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def without_template(source: Path, target: Path) -> None:
    """Copies ``tokenizer_config.json``, if there is one, without the chat template in it."""
    if (source / CONFIG).is_file():
        config = {key: value for key, value in read_json(source / CONFIG).items() if key != TEMPLATE_KEY}
        write_json(target / CONFIG, config)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object as readable JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _added(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    added: dict[str, int] = {}
    special: dict[str, int] = {}
    rows = read_json(folder / "tokenizer.json").get("added_tokens", [])
    decoder = config.get("added_tokens_decoder") or {}
    rows = [*rows, *({**row, "id": int(token)} for token, row in decoder.items())]
    for row in rows:
        (special if row.get("special") else added)[row["content"]] = row["id"]
    for name, token in read_json(folder / "added_tokens.json").items():
        if name not in special:
            added[name] = token
    return added, special


def _configured_affixes(
    config: Mapping[str, Any], roles: Mapping[str, int | None]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    bos, eos = roles["bos"], roles["eos"]
    prefix = (bos,) if bos is not None and config.get("add_bos_token", True) else ()
    suffix = (eos,) if eos is not None and config.get("add_eos_token", False) else ()
    return prefix, suffix


def _content(token: Any) -> str | None:
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [token for token in values if isinstance(token, int) and not isinstance(token, bool)]
