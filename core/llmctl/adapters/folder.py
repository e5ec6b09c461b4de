"""An adapter's folder, whichever format it has: telling it from a model, reading it, writing it.

``peft``'s two files are what we write, for low-rank adapters and for prefixes; ``llmctl.json`` beside them notes the base, the quantiser it was trained over, and
how layers were packed. Nothing here imports paddle.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmctl import plugins, tokenizers
from llmctl.adapters import base_model as bases
from llmctl.adapters import paddlenlp_lora, paddlenlp_prefix, peft_config, peft_format, prefix_format
from llmctl.adapters.adapter import Adapter
from llmctl.adapters.prefix import Prefix
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.checkpoint.folder import check_apart
from llmctl.checkpoint.hf_config import read_config
from llmctl.errors import CheckpointError
from llmctl.io.json_object import read_json, write_json
from llmctl.quant.blockwise import CODES
from llmctl.tokenizers.base import FILES

RECORD, GENERATION = "llmctl.json", "generation_config.json"
FORMATS = (peft_config.CONFIG, paddlenlp_lora.CONFIG, paddlenlp_prefix.CONFIG, paddlenlp_prefix.CACHES)


@dataclass(frozen=True)
class Opened:
    """An adapter and its base, checked against each other on the base's config.json and file headers."""

    folder: Path
    adapter: Adapter | Prefix
    base: Path
    plugin: plugins.Plugin
    dims: Dims

    @property
    def quantised(self) -> str:
        """Name of the code that the base was quantised with in training; empty = it was not."""
        return str(self.adapter.record.get("quantised", ""))


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return any((folder / name).is_file() for name in FORMATS)


def open_adapter(
    folder: Path,
    base: Path | None = None,
    family: str = "auto",
    allow_other: bool = False,
    noted: Mapping[str, Any] | None = None,
) -> Opened:
    """The adapter of a folder with its base found and checked.

    Args:
        folder: The adapter's.
        base: Folder of the base; None = the one that the adapter names.
        family: Name of the base's family, or ``"auto"``.
        allow_other: Whether the base may have other values than the one that was trained on.
        noted: What ``base.record`` gave of the base, where its folder does not hold the tensors themselves.

    Raises:
        LlmctlError: The base is not there or another one, or the adapter's tensors do not fit it.
    """
    if not is_adapter(folder):
        raise CheckpointError(f"{folder} holds no adapter; looked for {' and '.join(FORMATS)}")
    check_apart(folder)
    found = bases.find(base_name(folder), folder, base)
    config = read_config(found)
    plugin = plugins.resolve(family, config, str(found / "config.json"))
    dims = plugin.card.dims_from_config(config, str(found / "config.json"))
    adapter = read(folder, plugin, dims)
    bases.check(adapter.record.get("base", {}), found, plugin, dims, allow_other, noted)
    return Opened(folder, adapter, found, plugin, dims)


def base_name(folder: Path) -> str:
    """What the adapter names as its base; may be empty."""
    noted = _record(folder).get("base", {}).get("path")
    if noted:
        return str(noted)
    name = next(name for name in FORMATS if (folder / name).is_file())
    if name == paddlenlp_prefix.CACHES:
        return ""
    try:
        return str(json.loads((folder / name).read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def tokenizer_folder(folder: Path, base: Path) -> Path:
    """Where the tokenizer of an adapter is: beside it, or with its base."""
    return folder if any(next(folder.glob(pattern), None) for pattern in FILES) else base


def copy_tokenizer(source: Path, target: Path, card: Family) -> None:
    """Writes the tokenizer beside an adapter, if there is one, into another folder."""
    if tokenizer_folder(source, target) == source:
        tokenizers.load(source, card=card).save(target)
        copy_generation(source, target)


def copy_generation(source: Path, target: Path) -> None:
    """Copies the file of generation defaults, which some tokenizers and templates read, too."""
    if (source / GENERATION).is_file():
        shutil.copyfile(source / GENERATION, target / GENERATION)


def read(folder: Path, plugin: Any, dims: Dims) -> Adapter | Prefix:
    """The adapter of a folder, for a base of this family and these dims.

    Raises:
        CheckpointError: A setting is not supported, or tensors are missing, unexpected or of another shape.
    """
    record = _record(folder)
    adapter: Adapter | Prefix
    if prefix_format.kind(folder) == prefix_format.KIND:
        adapter = prefix_format.read(folder, plugin, dims)
    elif (folder / peft_config.CONFIG).is_file():
        adapter = peft_format.read(folder, plugin, dims, record.get("blocks", {}))
    elif (folder / paddlenlp_lora.CONFIG).is_file():
        adapter = paddlenlp_lora.read(folder, plugin, dims)
    else:
        adapter = paddlenlp_prefix.read(folder, plugin, dims)
    return replace(adapter, record=record)


def write(
    folder: Path, adapter: Adapter | Prefix, plugin: Any, dims: Dims, dtype: str = "float32", layout: str = "hf"
) -> None:
    """Writes an adapter into an existing folder.

    Args:
        folder: Where to write.
        adapter: What to write; its record goes into ``llmctl.json``.
        plugin: The family of the base.
        dims: Of the base.
        dtype: Of the tensors.
        layout: ``"hf"`` for peft's format, ``"native"`` for PaddleNLP's.

    Raises:
        CheckpointError: The adapter cannot be expressed in the format.
    """
    record = {**adapter.record, "format": 1}
    record.pop("blocks", None)
    if isinstance(adapter, Prefix):
        if layout == "hf":
            prefix_format.write(folder, adapter, plugin, dtype)
        else:
            paddlenlp_prefix.write(folder, adapter, plugin, dims, dtype)
    elif layout == "hf":
        blocks = peft_format.write(folder, adapter, plugin, dims, dtype)
        record.update({"blocks": blocks} if blocks else {})
    else:
        paddlenlp_lora.write(folder, adapter, plugin, dims, dtype)
    record["versions"] = dict(plugins.versions(plugin))
    write_json(folder / RECORD, record)


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    content = read_json(path)
    if not isinstance(content.get("base", {}), dict):
        raise CheckpointError(f"{path} is not what llmctl writes; delete it to use the adapter without its notes")
    blocks = content.get("blocks", {})
    counted = isinstance(blocks, dict) and all(
        isinstance(ranks, dict) and all(isinstance(rank, int) for rank in ranks.values()) for ranks in blocks.values()
    )
    if not counted:
        raise CheckpointError(f"{path}: blocks={blocks!r} must be ranks by layer; take the file as llmctl wrote it")
    if content.get("quantised", "") not in ("", *CODES):
        raise CheckpointError(f"{path}: quantised={content['quantised']!r} is unknown; known: {', '.join(CODES)}")
    return content
