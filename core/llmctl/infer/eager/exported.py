"""``export.json`` of an exported folder: all that running a program needs besides its tensors, so that the family's plugin is
not needed. No paddle here.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmctl.card.tokens import TokenFacts, Wording
from llmctl.errors import CheckpointError
from llmctl.io.digest import sha256
from llmctl.io.json_object import parse_json
from llmctl.io.typed import Count, Positive, check_type

NAME = "export.json"
FORMAT = 2
STATIC = "static"
HASHED = 256_000_000
"""Files up to this many bytes are hashed each time they are used; of larger ones the size is compared."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported model.

    Attributes:
        family: Name of its family.
        vocab: Number of logits.
        max_positions: Maximum number of tokens of prompt and answer; 0 = no limit.
        virtual_tokens: Positions before every sequence, whose keys and values are in ``prefix.npy``.
        rows: Names of the tensors that the model keeps per sequence (``KVCache.rows``).
        heads: (key-value heads, head_dim) of each layer.
        dtype: Data type of keys and values.
        wording: What the tokenizer and its chat template need to know of the family.
        difference: Largest difference of its logits from the model's, when it was exported.
        versions: Versions of llmctl, of the plugin and of paddle.
        files: Bytes and SHA-256 of the other files of the program.
    """

    family: str
    vocab: Positive
    max_positions: Count
    virtual_tokens: Count
    rows: tuple[str, ...]
    heads: tuple[tuple[Positive, Positive], ...]
    dtype: str
    wording: Wording
    difference: float
    versions: Mapping[str, str]
    files: Mapping[str, tuple[Count, str]] = field(default_factory=dict)


def is_exported(folder: Path) -> bool:
    """Whether a folder holds an exported program."""
    return (folder / NAME).is_file()


def write(folder: Path, exported: Exported) -> None:
    """Writes ``export.json`` into a folder."""
    content = {"format": FORMAT, "engine": STATIC, **asdict(exported)}
    content["sha256"] = _digest(content)
    (folder / NAME).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(folder: Path, verify: bool = False) -> Exported:
    """The content of a folder's ``export.json``, with the folder's files checked.

    Args:
        folder: The folder.
        verify: Whether the content of large files is compared with their SHA-256 too.

    Raises:
        CheckpointError: It cannot be read, is of another format, or a file is absent or was changed.
    """
    path = folder / NAME
    try:
        content = parse_json(path.read_bytes())
        if (content["format"], content["engine"]) != (FORMAT, STATIC):
            raise CheckpointError(f"{path} was written by another release of llmctl; export the model again")
        if content.pop("sha256") != _digest(content):
            raise ValueError("its content does not have the hash that it names")
        del content["format"], content["engine"]
        wording = dict(content.pop("wording"))
        tokens = TokenFacts.from_json(wording.pop("tokens"))
        heads = tuple((count, width) for count, width in content.pop("heads"))
        rows = tuple(content.pop("rows"))
        found = Exported(wording=Wording(tokens=tokens, **wording), heads=heads, rows=rows, **content)
        check_type(found, Exported)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not what llmctl export writes: {error}; export the model again") from None
    _check(folder, found.files, sys.maxsize if verify else HASHED)
    return found


def listed(folder: Path) -> dict[str, tuple[int, str]]:
    """Bytes and SHA-256 of a folder's files."""
    return {file.name: (file.stat().st_size, sha256(file)) for file in sorted(folder.iterdir())}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check(folder: Path, files: Mapping[str, tuple[int, str]], hashed: int) -> None:
    for name, (size, digest) in files.items():
        file = folder / name
        try:
            if Path(name).name != name or not file.is_file():
                raise CheckpointError(f"{folder} has no {name}, which is part of the program; export the model again")
            if file.stat().st_size != size or (size <= hashed and sha256(file) != digest):
                raise CheckpointError(f"{file} is damaged: its content was changed; export the model again")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder} cannot be read: {error}") from None
