"""Prefixes in the format of PaddleNLP: ``prefix_config.json``, ``prefix_model_state.pdparams`` and ``pre_caches.npy``.

The weights are ``0.weight`` [tokens, 2 * layers * kv_heads * head_dim], or an embedding and two linear layers (the prefix
MLP); all keys come before all values. ``pre_caches.npy`` is what inference reads: [layers, 2, kv_heads, tokens, head_dim].
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.adapters.config_values import Rule, check_values, is_count
from llmctl.adapters.paddlenlp_weights import read_weights
from llmctl.adapters.peft_weights import as_stored, check_tensors, load
from llmctl.adapters.prefix import Array, Prefix, compare, from_stored, shape_of, to_stored
from llmctl.card.dims import Dims
from llmctl.checkpoint.formats.npy import read_npy
from llmctl.errors import CheckpointError
from llmctl.io.json_object import read_json, write_json

CONFIG, WEIGHTS, CACHES = "prefix_config.json", "prefix_model_state.pdparams", "pre_caches.npy"


def read(folder: Path, plugin: Any, dims: Dims) -> Prefix:
    """Reads the prefix in a folder: from its weights, else from the caches for inference.

    Raises:
        CheckpointError: Sizes or tensors do not fit the base model, or a file cannot be read.
    """
    tensors = read_weights(folder, WEIGHTS)
    if tensors is None:
        return Prefix(from_stored(_caches(folder, dims), plugin.card))
    config = _config(folder)
    tokens = config["num_prefix_tokens"]
    layers, _, _, kv_heads, head_dim = shape_of(dims, tokens)
    named = {**config, "heads": config.get("multi_query_group_num") or config.get("num_attention_heads")}
    named["head_dim"] = (config.get("hidden_size") or 0) // (config.get("num_attention_heads") or 1)
    compare(folder, named, {"num_hidden_layers": layers, "heads": kv_heads, "head_dim": head_dim})
    flat = 2 * layers * kv_heads * head_dim
    expected: dict[str, tuple[int, ...]] = {"0.weight": (tokens, flat)}
    if config.get("prefix_projection"):
        between = int(config.get("prefix_projection_hidden_size") or 0)
        expected = {
            "0.weight": (tokens, kv_heads * head_dim),
            "1.weight": (kv_heads * head_dim, between),
            "1.bias": (between,),
            "3.weight": (between, flat),
            "3.bias": (flat,),
        }
    check_tensors(folder, tensors, expected)
    arrays = [load(tensors[name]) for name in expected]
    values = arrays[0]
    if len(arrays) > 1:
        values = np.tanh(values @ arrays[1] + arrays[2]) @ arrays[3] + arrays[4]
    stored = values.reshape(tokens, 2, layers, kv_heads, head_dim).transpose(2, 1, 0, 3, 4)
    base = str(config.get("base_model_name_or_path") or "")
    return Prefix(from_stored(stored, plugin.card), base, dtype=tensors["0.weight"].dtype)


def write(folder: Path, prefix: Prefix, plugin: Any, dims: Dims, dtype: str) -> None:
    """Writes the three files into an existing folder.

    Raises:
        CheckpointError: A value does not fit into the data type.
    """
    stored = to_stored(prefix.values, plugin.card)
    layers, _, tokens, kv_heads, head_dim = stored.shape
    flat = np.ascontiguousarray(stored.transpose(2, 1, 0, 3, 4).reshape(tokens, -1))
    with open(folder / WEIGHTS, "wb") as stream:
        pickle.dump({"0.weight": as_stored("0.weight", flat, dtype)}, stream, protocol=4)
    np.save(folder / CACHES, np.ascontiguousarray(stored.transpose(0, 1, 3, 2, 4)))
    config = {
        "base_model_name_or_path": prefix.base,
        "num_prefix_tokens": tokens,
        "num_attention_heads": dims.heads,
        "multi_query_group_num": None if kv_heads == dims.heads else kv_heads,
        "num_hidden_layers": layers,
        "hidden_size": dims.heads * head_dim,
        "prefix_projection": False,
        "prefix_projection_hidden_size": None,
        "prefix_dropout": 0.0,
        "tensor_parallel_degree": -1,
        "dtype": dtype,
    }
    write_json(folder / CONFIG, config)


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    config = read_json(path, required=True)
    rules: dict[str, Rule] = {"num_prefix_tokens": (is_count, "an integer above 0")}
    for key in ("num_attention_heads", "multi_query_group_num", "num_hidden_layers", "hidden_size"):
        rules[key] = (lambda value: value is None or is_count(value), "null or an integer above 0")
    check_values(path, {"num_prefix_tokens": None, **config}, rules)
    return config


def _caches(folder: Path, dims: Dims) -> Array:
    path = folder / CACHES
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has {CONFIG} but neither {WEIGHTS} nor {CACHES}; merge the files of tensor-parallel ranks first"
        )
    stored = read_npy(path)
    layers, _, _, kv_heads, head_dim = shape_of(dims, 0)
    found = tuple(stored.shape)
    if len(found) != 5 or found[:3] != (layers, 2, kv_heads) or found[3] < 1 or found[4] != head_dim:
        raise CheckpointError(
            f"the prefix in {folder} does not fit the base:\n  {CACHES} is {list(found)}, expected "
            f"[{layers}, 2, {kv_heads}, tokens, {head_dim}]"
        )
    if stored.dtype.kind != "f":
        raise CheckpointError(f"{path} holds {stored.dtype}, not floating-point numbers")
    wide = stored.astype("float64" if stored.dtype == np.float64 else "float32")
    return np.ascontiguousarray(wide.transpose(0, 1, 3, 2, 4))
