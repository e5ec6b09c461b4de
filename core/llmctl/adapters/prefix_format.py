"""Prefixes in the format of PEFT: ``adapter_config.json``, and ``adapter_model.safetensors`` with one tensor.

``prompt_embeddings`` is [tokens, layers * 2 * kv_heads * head_dim]: the output of the projection, if training had one. The
sizes in the configuration are those of keys and values, not of queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.adapters.peft_config import CONFIG, NO_EFFECT
from llmctl.adapters.peft_weights import WEIGHTS, as_planned, check_tensors, headers, load
from llmctl.adapters.prefix import Prefix, compare, from_stored, shape_of, to_stored
from llmctl.card.dims import Dims
from llmctl.checkpoint.formats import safetensors
from llmctl.errors import CheckpointError, FileError
from llmctl.io.json_object import read_json, write_json

KIND, TENSOR = "PREFIX_TUNING", "prompt_embeddings"
KNOWN = (
    "peft_type", "task_type", "num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers",
    "base_model_name_or_path", "num_transformer_submodules", "encoder_hidden_size", "prefix_projection", "init_weights",
)  # fmt: skip
"""Keys that are read, or that only describe the training."""


def kind(folder: Path) -> str:
    """``peft_type`` in the configuration of a folder; empty if it cannot be read."""
    try:
        return str(read_json(folder / CONFIG).get("peft_type", ""))
    except FileError:
        return ""


def read(folder: Path, plugin: Any, dims: Dims) -> Prefix:
    """Reads the prefix in a folder.

    Raises:
        CheckpointError: A setting is not supported, or sizes or tensors do not fit the base model.
    """
    config = read_json(folder / CONFIG, required=True)
    tokens = config.get("num_virtual_tokens")
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise CheckpointError(f"{folder / CONFIG}: num_virtual_tokens={tokens!r} must be an integer above 0")
    _check(folder, config)
    shape = shape_of(dims, tokens)
    layers, _, _, kv_heads, head_dim = shape
    sizes = {"num_layers": layers, "num_attention_heads": kv_heads, "token_dim": kv_heads * head_dim}
    compare(folder, config, sizes)
    tensors = headers(folder)
    check_tensors(folder, tensors, {TENSOR: (tokens, layers * 2 * kv_heads * head_dim)})
    values = load(tensors[TENSOR]).reshape(tokens, layers, 2, kv_heads, head_dim).transpose(1, 2, 0, 3, 4)
    base = str(config.get("base_model_name_or_path") or "")
    return Prefix(from_stored(values, plugin.card), base, dtype=tensors[TENSOR].dtype)


def write(folder: Path, prefix: Prefix, plugin: Any, dtype: str) -> None:
    """Writes both files into an existing folder.

    Raises:
        CheckpointError: A value does not fit into the data type.
    """
    layers, _, tokens, kv_heads, head_dim = prefix.values.shape
    stored = to_stored(prefix.values, plugin.card).transpose(2, 0, 1, 3, 4).reshape(tokens, -1)
    safetensors.write_file(folder / WEIGHTS, {TENSOR: as_planned(TENSOR, np.ascontiguousarray(stored), dtype)})
    config = {
        "peft_type": KIND,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": prefix.base,
        "inference_mode": True,
        "num_virtual_tokens": tokens,
        "token_dim": kv_heads * head_dim,
        "num_transformer_submodules": 1,
        "num_attention_heads": kv_heads,
        "num_layers": layers,
        "encoder_hidden_size": kv_heads * head_dim,
        "prefix_projection": False,
    }
    write_json(folder / CONFIG, config)


def _check(folder: Path, config: Mapping[str, Any]) -> None:
    unsupported = [
        f"{key}={config[key]!r}"
        for key, allowed in (("task_type", ("CAUSAL_LM", None)), ("num_transformer_submodules", (1, None)))
        if config.get(key) not in allowed
    ]
    unsupported += [f"{key}={value!r}" for key, value in config.items() if value and key not in (*KNOWN, *NO_EFFECT)]
    if unsupported:
        raise CheckpointError(f"{folder / CONFIG}: {', '.join(unsupported)} is not supported for prefixes")
