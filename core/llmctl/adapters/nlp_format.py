"""PaddleNLP's adapter format: ``lora_config.json`` and ``lora_model_state.pdparams``.

Tensors are named ``<path>.lora_A`` [in, rank] and ``<path>.lora_B`` [rank, out]; paths are those of the card.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.adapters import targets
from llmctl.adapters.adapter import Adapter, Part, alpha_of, scale_of
from llmctl.adapters.peft_format import load, problems
from llmctl.card import Dims
from llmctl.checkpoint import paddle_file
from llmctl.checkpoint.dtypes import STORAGE, cast
from llmctl.errors import CheckpointError

CONFIG, WEIGHTS = "lora_config.json", "lora_model_state.pdparams"
A, B = ".lora_A", ".lora_B"


def read(folder: Path, plugin: Any, dims: Dims) -> Adapter:
    """The adapter in a folder; which layers it has is told by its tensors, since the targets are patterns.

    Raises:
        CheckpointError: A setting is not supported, or tensors are missing, unexpected or of another shape.
    """
    config = _config(folder)
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} has {CONFIG} but no {WEIGHTS}")
    tensors = paddle_file.read_header(folder / WEIGHTS)
    rank = config["r"]
    scale = scale_of(float(config.get("lora_alpha", 8)), rank, bool(config.get("rslora", False)))
    shapes = {path: tensor.shape for path, tensor in targets.linears(plugin.card, dims).items()}
    chosen = [path for path in shapes if path + A in tensors or path + B in tensors]
    if not chosen:
        raise CheckpointError(f"{folder / WEIGHTS} holds no adapter of a linear layer of {plugin.card.name}")
    expected: dict[str, tuple[int, ...]] = {}
    for path in chosen:
        expected[path + A], expected[path + B] = (shapes[path][0], rank), (rank, shapes[path][1])
    problems(folder, tensors, expected)
    parts = {path: Part(load(tensors[path + A]), load(tensors[path + B]), scale) for path in chosen}
    base = str(config.get("base_model_name_or_path") or "")
    dtype = tensors[chosen[0] + A].dtype
    return Adapter(parts, bool(config.get("rslora", False)), float(config.get("lora_dropout", 0.0)), base, dtype=dtype)


def write(folder: Path, adapter: Adapter, dtype: str) -> None:
    """Writes both files into an existing folder.

    Raises:
        CheckpointError: The adapter has lengths (DoRA), or ranks or scales that differ from layer to layer.
    """
    parts = adapter.parts
    if any(part.magnitude is not None for part in parts.values()):
        raise CheckpointError("PaddleNLP's format has no place for the lengths of DoRA; merge the adapter instead")
    kinds = {(part.rank, part.scale) for part in parts.values()}
    if len(kinds) != 1:
        raise CheckpointError("PaddleNLP's format has one rank and one alpha; the layers of this adapter differ")
    ((rank, scale),) = kinds
    arrays: dict[str, Any] = {}
    for path, part in parts.items():
        for ending, values in ((A, part.a), (B, part.b)):
            arrays[path + ending] = cast(np.ascontiguousarray(values), values.dtype.name, dtype).astype(STORAGE[dtype])
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
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("r"), int) or config["r"] < 1:
        raise CheckpointError(f"{path}: it must be an object whose r is a whole number above 0")
    if config.get("pissa"):
        raise CheckpointError(
            f"{path}: pissa=true takes the principal part out of the base, and the files do not say what that was; "
            "merge it with PaddleNLP into the base that it was trained over"
        )
    used = [key for key in ("trainable_bias", "trainable_modules", "enable_lora_list", "do_qat") if config.get(key)]
    if used:
        raise CheckpointError(f"{path}: {', '.join(used)} is not supported; only LoRA of linear layers is")
    return config
