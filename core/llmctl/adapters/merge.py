"""Merges a LoRA adapter into its base model, tensor by tensor: W + scale * A B, with column norms set for DoRA; tensors and rows
of the adapter's own take the place of the base's.

Sums are computed in float32 or float64 and rounded once. If the base is quantized, or was in training, the adapter is added to
the dequantized weights, and the result are floats. Memory: the adapter and a few copies of one tensor; no model is built.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from llmctl import plugins, tokenizers
from llmctl.adapters import targets
from llmctl.adapters.adapter import Adapter, LoraWeights
from llmctl.adapters.base_model import name_of
from llmctl.adapters.folder import RECORD, OpenedAdapter, ignored_keys, tokenizer_folder
from llmctl.adapters.own_tensors import EMBED, tensor_of
from llmctl.checkpoint import convert
from llmctl.checkpoint.convert import LazyTensor, Progress
from llmctl.checkpoint.formats.dtypes import cast
from llmctl.checkpoint.formats.safetensors import write_file
from llmctl.checkpoint.hf_config import NAME as CONFIG
from llmctl.checkpoint.naming import HF, mappings_for
from llmctl.checkpoint.save import KEEP, plan_shards, write_index
from llmctl.errors import CheckpointError
from llmctl.io.atomic import atomic_folder
from llmctl.io.checksums import write_manifest
from llmctl.io.json_object import read_json, write_json
from llmctl.quant.blockwise import round_trip
from llmctl.quant.formats.config import KEY
from llmctl.tokenizers.base import FILES


@dataclass(frozen=True)
class MergedWeight:
    """Lazy view of a weight with its adapter merged; has what writers use: ``shape``, ``dtype``, ``numpy()``.

    Attributes:
        stored: Weight of the base model.
        lora: The adapter, or None.
        dtype: Data type of the result.
        code: Code that the base was quantized with in training; empty = not quantized.
    """

    stored: LazyTensor
    lora: LoraWeights | None
    dtype: str
    code: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """[in, out] of a linear."""
        return self.stored.shape

    def numpy(self) -> NDArray[Any]:
        """The merged values, in the storage type of ``dtype``."""
        compute = "float64" if self.stored.dtype == "float64" else "float32"
        weight = cast(self.stored.numpy(), self.stored.dtype, compute)
        if self.code:
            weight = round_trip(weight, self.code)
        if self.lora is not None:
            weight = self.lora.merged(weight)
        try:
            return cast(weight, compute, self.dtype)
        except ValueError as error:
            name = self.stored.sources[0][1].target
            raise CheckpointError(f"{name}: {error}; merge with --dtype float32 or bfloat16") from None


def merge(
    opened: OpenedAdapter,
    output: Path,
    dtype: str = KEEP,
    max_shard_bytes: int = 5_000_000_000,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> int:
    """Writes the merged model folder; returns the number of layers that the adapter changes.

    Args:
        opened: The adapter and its base model.
        output: Folder to write.
        dtype: Data type of floating-point weights: ``"keep"`` or one of ``save.DTYPES``.
        max_shard_bytes: Maximum size of a weight file, unless a single tensor is larger.
        progress: Called with the number of bytes written.
        overwrite: Replace the folder if it exists.

    Raises:
        CheckpointError: The adapter is a prefix, or a value does not fit into the data type.
        FileError: The folder exists or cannot be written.
    """
    if not isinstance(opened.adapter, Adapter):
        raise CheckpointError(
            f"{opened.folder} holds a prefix, which cannot be merged: its keys and values are not weights of a model. Use it "
            "as it is, e.g. with llmctl generate"
        )
    source = opened.source()
    state: dict[str, Any] = dict(source.state)
    layers = opened.adapter.layers
    changed = targets.linears(opened.plugin.card, opened.dims) if opened.quantized else layers
    if opened.own:
        before = opened.base_source().state
        for name in (*opened.adapter.tensors, *opened.adapter.tokens):
            # A head that is no longer the embedding is stored as the embedding was.
            kept = before[name].dtype if name in before else before[_embedding(opened)].dtype
            state[name] = MergedWeight(source.state[name], None, kept if dtype == KEEP else dtype)
    for path in changed:
        stored = source.state[path + ".weight"]
        merged_dtype = stored.dtype if dtype == KEEP else dtype
        state[path + ".weight"] = MergedWeight(stored, layers.get(path), merged_dtype, opened.quantized)
    shards = plan_shards(state, mappings_for(HF, opened.plugin, opened.dims), dtype, max_shard_bytes)
    with atomic_folder(output, overwrite) as work:
        for name, tensors in shards.items():
            write_file(work / name, tensors, progress)
        if len(shards) > 1:
            write_index(work, shards)
        convert.copy_other_files(opened.base, work)
        for name in convert.OF_CODES:
            (work / name).unlink(missing_ok=True)  # what is written are floats
        ignored = (*ignored_keys(opened.adapter.record), KEY)
        convert.complete_config(work, dtype, opened.plugin.card, opened.dims, ignored)
        write_json(work / CONFIG, {**read_json(work / CONFIG), **opened.config_changes})
        replace_tokenizer(opened, work)
        (work / RECORD).write_text(json.dumps(_record(opened, dtype, len(layers)), indent=2) + "\n", encoding="utf-8")
        write_manifest(work)
    return len(layers)


def replace_tokenizer(opened: OpenedAdapter, work: Path) -> None:
    """Replaces the base model's tokenizer and chat template by those that the adapter was trained with, if it has them."""
    folder = tokenizer_folder(opened.folder, opened.base)
    if folder == opened.base:
        return
    for path in [
        path for pattern in (*FILES, "tokenizer_config.json", "chat_template.*") for path in work.glob(pattern)
    ]:
        path.unlink()
    tokenizers.load(folder, card=opened.plugin.card).save(work)


def _embedding(opened: OpenedAdapter) -> str:
    embed = tensor_of(opened.plugin.card, opened.base_dims, EMBED)
    assert embed is not None, "a model has a token embedding"
    return embed.name


def _record(opened: OpenedAdapter, dtype: str, layers: int) -> dict[str, Any]:
    return {
        "merged": {"base": name_of(opened.base), "adapter": str(opened.folder.resolve()), "dtype": dtype},
        "layers": layers,
        "replaced": list(opened.own),
        "dequantised_from": opened.quantized or (opened.scheme and opened.scheme.method),
        "card_hash": opened.plugin.card.hash(),
        "versions": dict(plugins.versions(opened.plugin)),
    }
