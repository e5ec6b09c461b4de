"""LoRA adapters in the format of PaddleNLP: ``lora_config.json`` and ``lora_model_state.pdparams``.

Tensors are ``<path>.lora_A`` [in, rank] and ``<path>.lora_B`` [rank, out], with the layer names of PaddleNLP, which fuses
some layers.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmctl.adapters import repack, targets
from llmctl.adapters.adapter import Adapter, LoraWeights, alpha_of, scale_of
from llmctl.adapters.config_values import check_values, is_count, is_number
from llmctl.adapters.paddlenlp_weights import UNIFIED, read_weights
from llmctl.adapters.peft_weights import as_stored, check_tensors, load
from llmctl.card.dims import Dims
from llmctl.card.weight_map import select_variant
from llmctl.errors import CheckpointError
from llmctl.io.json_object import read_json, write_json

CONFIG, WEIGHTS = "lora_config.json", "lora_model_state.pdparams"
A, B = ".lora_A", ".lora_B"


def read(folder: Path, plugin: Any, dims: Dims) -> Adapter:
    """Reads the adapter in a folder. Its layers follow from the tensors, because targets are patterns in this format.

    Raises:
        CheckpointError: A setting is not supported, or tensors are missing, unexpected or have another shape.
    """
    config = _config(folder)
    tensors = read_weights(folder, WEIGHTS)
    if tensors is None:
        raise CheckpointError(f"{folder} has {CONFIG} but neither {WEIGHTS} nor {UNIFIED}")
    shapes = {path: tensor.shape for path, tensor in targets.linears(plugin.card, dims).items()}
    mappings = repack.linear_mappings(plugin.hooks.weight_map(card=plugin.card, dims=dims, source="paddlenlp"), shapes)
    named = {name.removesuffix(A).removesuffix(B) for name in tensors}
    mappings = select_variant(mappings, {f"{module}.weight" for module in named})
    sizes = {module: shape for module, shape in repack.shapes_in_file(mappings, shapes).items() if module in named}
    if not sizes:
        raise CheckpointError(f"{folder} has no adapter for a linear layer of {plugin.card.name}")
    rank, stabilised = config["r"], bool(config.get("rslora", False))
    expected: dict[str, tuple[int, ...]] = {}
    for module, (inputs, outputs) in sizes.items():
        expected[module + A], expected[module + B] = (inputs, rank), (rank, outputs)
    check_tensors(folder, tensors, expected)
    scale = scale_of(float(config.get("lora_alpha", 8)), rank, stabilised)
    layers = {module: LoraWeights(load(tensors[module + A]), load(tensors[module + B]), scale) for module in sizes}
    return Adapter(
        repack.from_file(layers, mappings, shapes),
        stabilised,
        float(config.get("lora_dropout", 0.0)),
        str(config.get("base_model_name_or_path") or ""),
        dtype=tensors[next(iter(expected))].dtype,
    )


def write(folder: Path, adapter: Adapter, plugin: Any, dims: Dims, dtype: str) -> None:
    """Writes both files into an existing folder. All layers get the same rank, padded with zeros, and the same scale.

    Args:
        folder: The folder.
        adapter: The adapter.
        plugin: Plugin of the base model's family.
        dims: Dims of the base model.
        dtype: Data type of the tensors.

    Raises:
        CheckpointError: The adapter is a DoRA adapter or has tensors of its own, or a value does not fit into the data type.
    """
    if any(part.magnitude is not None for part in adapter.layers.values()):
        raise CheckpointError("the format of PaddleNLP does not support DoRA; merge the adapter instead")
    if adapter.own:
        raise CheckpointError(
            f"the format of PaddleNLP has no place for {', '.join(adapter.own)}, which the adapter has of its own; merge it instead"
        )
    shapes = {path: tensor.shape for path, tensor in targets.linears(plugin.card, dims).items()}
    mappings = repack.linear_mappings(plugin.hooks.weight_map(card=plugin.card, dims=dims, source="paddlenlp"), shapes)
    parts = repack.equalize_ranks(repack.to_file(adapter.layers, select_variant(mappings, ()), shapes))
    arrays: dict[str, Any] = {}
    for path, part in parts.items():
        for ending, values in ((A, part.a), (B, part.b)):
            arrays[path + ending] = as_stored(path + ending, values, dtype)
    rank, scale = next((part.rank, part.scale) for part in parts.values())
    with open(folder / WEIGHTS, "wb") as stream:
        pickle.dump(arrays, stream, protocol=4)
    config = {
        "base_model_name_or_path": adapter.base,
        "r": rank,
        "lora_alpha": alpha_of(scale, rank, adapter.rank_stabilised),
        "lora_dropout": adapter.dropout,
        "rslora": adapter.rank_stabilised,
        "target_modules": [f".*{name}.*" for name in dict.fromkeys(path.rpartition(".")[2] for path in parts)],
        "merge_weights": False,
        "tensor_parallel_degree": -1,
        "dtype": dtype,
        "scaling": scale,
    }
    write_json(folder / CONFIG, config)


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    config = read_json(path, required=True)
    if config.get("pissa"):
        raise CheckpointError(
            f"{path}: pissa=true changes the base model, and the files do not hold the change; merge the adapter with "
            "PaddleNLP instead"
        )
    used = [key for key in ("trainable_bias", "trainable_modules", "enable_lora_list", "do_qat") if config.get(key)]
    if used:
        raise CheckpointError(f"{path}: {', '.join(used)} is not supported; only LoRA of linear layers is")
    number = (is_number, "a number")
    check_values(
        path,
        {"r": None, **config},
        {"r": (is_count, "an integer above 0"), "lora_alpha": number, "lora_dropout": number},
    )
    return config
