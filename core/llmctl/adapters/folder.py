"""Folders of adapters in any format: detecting, reading and writing them.

LoRA adapters and prefixes are written in the format of PEFT by default. A third file, ``llmctl.json``, records the base
model, its quantization in training, and the ranks within fused layers. Nothing here imports paddle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmctl import plugins, tokenizers
from llmctl.adapters import base_model as bases
from llmctl.adapters import own_tensors, paddlenlp_lora, paddlenlp_prefix, peft_config, peft_format, prefix_format
from llmctl.adapters.adapter import Adapter
from llmctl.adapters.prefix import Prefix
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.checkpoint.build import CheckedModel, check_model
from llmctl.checkpoint.convert import SourceModel, open_source
from llmctl.checkpoint.folder import PACKED, check_no_adapter
from llmctl.checkpoint.gguf.folder import CACHE
from llmctl.checkpoint.hf_config import read_config
from llmctl.checkpoint.locate import locate
from llmctl.checkpoint.quantized import open_weights, without_scheme
from llmctl.errors import CheckpointError, FileError, UnsupportedError
from llmctl.io.copying import copy_into
from llmctl.io.json_object import read_json, write_json
from llmctl.io.written import AdapterRecord, read_written
from llmctl.quant.blockwise import CODES
from llmctl.quant.formats.scheme import Scheme
from llmctl.tokenizers.base import FILES

RECORD, GENERATION, IGNORED = "llmctl.json", "generation_config.json", "ignored_config_keys"
FORMATS = (peft_config.CONFIG, paddlenlp_lora.CONFIG, paddlenlp_prefix.CONFIG, paddlenlp_prefix.CACHES)


@dataclass(frozen=True)
class OpenedAdapter:
    """An adapter and the folder of its base model, checked to fit together from config.json and file headers.

    Attributes:
        folder: Folder of the adapter.
        adapter: The adapter.
        base: Folder of the base model.
        plugin: Plugin of its family.
        dims: Dims of the model with the adapter.
        base_dims: Dims of the base model, which differ where the adapter has a vocabulary or a head of its own.
        scheme: How the base is quantized in its folder; None = it holds floats, or is a GGUF file, which is read as floats.
    """

    folder: Path
    adapter: Adapter | Prefix
    base: Path
    plugin: plugins.Plugin
    dims: Dims
    base_dims: Dims
    scheme: Scheme | None = None

    @property
    def quantized(self) -> str:
        """Code that a base of floats was quantized with in training; empty = it was not quantized."""
        return str(self.adapter.record.get("quantised", ""))

    @property
    def low_rank(self) -> OpenedAdapter:
        """The same without the adapter's own tensors, for a model that has them already."""
        assert isinstance(self.adapter, Adapter)
        return replace(self, adapter=replace(self.adapter, tensors={}, tokens={}))

    @property
    def config_changes(self) -> dict[str, Any]:
        """Keys of the base's config.json that are others in the model with the adapter."""
        return own_tensors.config_changes(self.plugin.card, self.base_dims, self.dims)

    @property
    def own(self) -> list[str]:
        """What the adapter has in place of tensors of its base, as ``Adapter.own``."""
        return self.adapter.own if isinstance(self.adapter, Adapter) else []

    def check_low_rank(self, name: str) -> None:
        """Checks that the adapter is low-rank matrices only, so that it can be one of several of a model, or beside packed weights.

        Args:
            name: What it is called, for messages.

        Raises:
            UnsupportedError: It has tensors of its own; the message says how to merge it.
        """
        if self.own:
            base = f"--base {self.base} "
            if (self.base / PACKED).is_file():  # nothing is merged into packed weights
                base = "" if base_name(self.folder) else "--base MODEL "
            raise UnsupportedError(
                f"the adapter {name} has tensors of its own ({', '.join(self.own)}), which packed weights and models that several "
                f"adapters share do not take; merge it, and use the result as the model: llmctl merge {self.folder} {base}"
                "--output MERGED"
            )

    def model(self) -> CheckedModel:
        """The base, checked, with the adapter's own tensors in it; its low-rank matrices are not applied.

        Raises:
            CheckpointError: The tensors of the base's folder are not exactly those of the card.
        """
        found = check_model(self.base, self.plugin.card.name)
        if not isinstance(self.adapter, Adapter) or not self.own:
            return found
        return own_tensors.checked_with(found, self.adapter, self.dims)

    def source(self) -> SourceModel:
        """As ``model``, for reading tensor by tensor."""
        found = self.base_source()
        return own_tensors.source_with(found, self.adapter, self.dims) if isinstance(self.adapter, Adapter) else found

    def base_source(self) -> SourceModel:
        """The base, for reading tensor by tensor."""
        weights = None if self.scheme is None else open_weights(self.base, self.plugin.card, self.base_dims)
        return open_source(self.base, self.plugin, self.base_dims, weights)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a LoRA adapter or a prefix."""
    return any((folder / name).is_file() for name in FORMATS)


def open_adapter(
    folder: Path,
    base: Path | None = None,
    family: str = "auto",
    allow_other: bool = False,
    base_record: Mapping[str, Any] | None = None,
) -> OpenedAdapter:
    """Opens an adapter, finds its base model, and checks that they fit together.

    Args:
        folder: Folder of the adapter, or its name on a hub.
        base: Folder of the base model, or its name on a hub; None = the one that the adapter records.
        family: Model family, or ``"auto"``.
        allow_other: Whether to allow a base with other weights.
        base_record: ``base_model.record`` of the base, if its folder does not hold the tensors.

    Raises:
        LlmctlError: The base is missing or another model, or the tensors of the adapter do not fit it.
    """
    folder = locate(folder)
    if not is_adapter(folder):
        what = (
            "holds no adapter: it has none" if folder.exists() else "does not exist; the folder of an adapter has one"
        )
        raise CheckpointError(f"{folder} {what} of {', '.join(FORMATS)}")
    check_no_adapter(folder)
    found = bases.find(base_name(folder), folder, base)
    config = read_config(found)
    plugin = plugins.resolve(family, config, str(found / "config.json"))
    config, scheme = without_scheme(found, config)
    scheme = None if scheme and scheme.method == CACHE else scheme
    config = {key: value for key, value in config.items() if key not in ignored_keys(_record(folder))}
    dims = plugin.card.dims_from_config(config, str(found / "config.json"))
    adapter, adapted_dims = read_with_dims(folder, plugin, dims)
    bases.check(adapter.record.get("base", {}), found, plugin, dims, allow_other, base_record)
    opened = OpenedAdapter(folder, adapter, found, plugin, adapted_dims, dims, scheme)
    if opened.quantized and scheme is not None and scheme.keeps_codes:
        raise CheckpointError(
            f"{folder} was trained on a base that was quantized to {opened.quantized} in training, but {found} has {scheme} of its "
            "own; give the float model that it was trained on with --base"
        )
    return opened


def base_name(folder: Path) -> str:
    """The base model that the adapter records; may be empty."""
    recorded = _record(folder).get("base", {}).get("path")
    if recorded:
        return str(recorded)
    name = next(name for name in FORMATS if (folder / name).is_file())
    if name == paddlenlp_prefix.CACHES:
        return ""
    try:
        return str(read_json(folder / name).get("base_model_name_or_path") or "")
    except FileError:
        return ""


def tokenizer_folder(folder: Path, base: Path) -> Path:
    """The folder with the tokenizer of an adapter: its own, or that of the base model."""
    return folder if any(next(folder.glob(pattern), None) for pattern in FILES) else base


def copy_tokenizer(source: Path, target: Path, card: Family) -> None:
    """Copies the tokenizer of an adapter's folder, if it has one."""
    if tokenizer_folder(source, target) == source:
        tokenizers.load(source, card=card).save(target)
        copy_generation(source, target)


def copy_generation(source: Path, target: Path) -> None:
    """Copies ``generation_config.json``, which some tokenizers and chat templates read."""
    if (source / GENERATION).is_file():
        copy_into(source / GENERATION, target)


def read(folder: Path, plugin: Any, dims: Dims) -> Adapter | Prefix:
    """Reads an adapter for a base model of this family and these dims.

    Raises:
        CheckpointError: A setting is not supported, or tensors are missing, unexpected or have another shape.
    """
    return read_with_dims(folder, plugin, dims)[0]


def read_with_dims(folder: Path, plugin: Any, dims: Dims) -> tuple[Adapter | Prefix, Dims]:
    """As ``read``; also returns the dims of the model with the adapter, which may have tensors of another size."""
    record = _record(folder)
    adapter: Adapter | Prefix
    if prefix_format.kind(folder) == prefix_format.KIND:
        adapter = prefix_format.read(folder, plugin, dims)
    elif (folder / peft_config.CONFIG).is_file():
        adapter, dims = peft_format.read(folder, plugin, dims, record.get("blocks", {}))
    elif (folder / paddlenlp_lora.CONFIG).is_file():
        adapter = paddlenlp_lora.read(folder, plugin, dims)
    else:
        adapter = paddlenlp_prefix.read(folder, plugin, dims)
    return replace(adapter, record=record), dims


def write(
    folder: Path, adapter: Adapter | Prefix, plugin: Any, dims: Dims, dtype: str = "float32", layout: str = "hf"
) -> None:
    """Writes an adapter into an existing folder.

    Args:
        folder: The folder.
        adapter: The adapter; its record is written to ``llmctl.json``.
        plugin: Plugin of the base model's family.
        dims: Dims of the model with the adapter.
        dtype: Data type of the tensors.
        layout: ``"hf"`` for the format of PEFT, ``"native"`` for that of PaddleNLP.

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


def ignored_keys(record: Mapping[str, Any]) -> Sequence[str]:
    """Keys of the base's config.json that the adapter's training ignored (``model.ignore_config_keys``)."""
    names: Sequence[str] = record.get(IGNORED, ())
    return names


def _record(folder: Path) -> dict[str, Any]:
    """What llmctl recorded of an adapter; empty where another tool wrote it.

    Raises:
        FileError: The record is damaged, or not llmctl's.
        CheckpointError: The base was quantized in a way that is not known.
    """
    path = folder / RECORD
    content = read_written(path, AdapterRecord, "restore the file, or delete it if llmctl did not write it")
    if content.get("quantised", "") not in ("", *CODES):
        raise CheckpointError(f"{path}: quantised={content['quantised']!r} is unknown; known: {', '.join(CODES)}")
    return content
