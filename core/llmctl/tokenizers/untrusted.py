"""What a ``tokenizer.json`` may not do: end the process, take all memory, or multiply the texts it is given."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from llmctl.errors import TokenizerError
from llmctl.io.json_object import parse_json
from llmctl.io.limits import TOKENIZER_GROWTH


def check_before(content: str, path: Path) -> None:
    """Checks that the library can read the file without an abort.

    Raises:
        TokenizerError: A table of characters in it is damaged.
    """
    if not re.search(r'"precompiled_charsmap"|"continuing_subword_prefix"\s*:\s*"[^"]', content):
        return
    try:
        description = parse_json(content)
    except ValueError as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}") from None
    _check_prefix(description.get("model") if isinstance(description, dict) else None, path)
    for part in _parts(description.get("normalizer") if isinstance(description, dict) else None):
        table = part.get("precompiled_charsmap")
        if isinstance(table, str):
            try:
                raw = base64.b64decode(table)
            except ValueError:
                raw = b""
            size = int.from_bytes(raw[:4], "little")
            if len(raw) < 4 or size % 4 or size > len(raw) - 4:
                raise TokenizerError(f"{path} cannot be read: its precompiled_charsmap is damaged")


def _check_prefix(model: Any, path: Path) -> None:
    """The library cuts the prefix off the second part of each merge, and ends the process where there is none."""
    if not isinstance(model, dict) or not isinstance(prefix := model.get("continuing_subword_prefix"), str):
        return
    merges = model.get("merges")
    for merge in merges if isinstance(merges, list) else []:
        second = (
            str(merge).split(" ", 1)[-1]
            if isinstance(merge, str)
            else merge[-1]
            if isinstance(merge, list) and merge
            else ""
        )
        if not isinstance(second, str) or not second.startswith(prefix):
            raise TokenizerError(
                f"{path} cannot be read: the merge {merge!r} lacks continuing_subword_prefix={prefix!r}"
            )


def check(inner: Any, path: Path) -> None:
    """Checks that the tokenizer can encode texts safely.

    Args:
        inner: The library's object.
        path: Its file, for messages.

    Raises:
        TokenizerError: A normalizer makes texts much longer, or an added token has no text.
    """
    if any(not row.content for row in inner.get_added_tokens_decoder().values()):
        raise TokenizerError(f"{path} has an added token without text; give it a name or take it out")
    if inner.normalizer is None:
        return
    growth = 1.0
    for part in _parts(parse_json(inner.normalizer.__getstate__())):
        growth *= _growth(part)
    if growth > TOKENIZER_GROWTH:
        raise TokenizerError(
            f"{path}: its normalizers may make a text {growth:,.0f} times longer; up to {TOKENIZER_GROWTH} times is accepted"
        )


def _parts(normalizer: Any) -> list[dict[str, Any]]:
    """A normalizer's steps, those of sequences inside too."""
    found, todo = [], [normalizer]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            found.append(part)
            inside = part.get("normalizers")
            todo += inside if isinstance(inside, list) else []
    return found


def _growth(part: dict[str, Any]) -> float:
    """How many times longer a step may make a text of one character."""
    if part.get("type") == "Prepend":
        return 1 + len(str(part.get("prepend", "")))
    if part.get("type") != "Replace":
        return 1.0
    pattern, content = part.get("pattern"), len(str(part.get("content", "")))
    text = pattern.get("String") if isinstance(pattern, dict) else None
    return max(1.0, content / len(text)) if text else 1.0 + content
