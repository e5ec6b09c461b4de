"""Which files of a repository are read: configuration, tokenizer, and weights of one format; only of its top folder."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

from llmctl.errors import CheckpointError
from llmctl.io.gguf_files import GgufModel
from llmctl.io.json_object import parse_json

SMALL = (
    "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "*.model", "*.tiktoken", "tokenization_*.py", "chat_template.jinja", "chat_template.json",
    "quantize_config.json", "quant_config.json", "hf_quant_config.json", "weight_scales.json", "act_scales.json", "adapter_config.json", "lora_config.json",
    "prefix_config.json", "llmctl.json",
)  # fmt: skip
"""Patterns of what is read besides weights; code is read as text and never run."""

INDEX = ".index.json"
MODELS = ("model.safetensors", "pytorch_model.bin", "model_state.pdparams")
"""Weights of models, each one file or shards with an index; the first that is there."""

ADAPTERS = (
    ("adapter_model.safetensors", "adapter_model.bin"),
    ("peft_model*.safetensors*", "lora_model_state.pdparams", "prefix_model_state.pdparams", "pre_caches.npy"),
)
"""Weights of adapters: in the format of PEFT, in that of PaddleNLP; of each the first pattern that is there."""


def small(names: Iterable[str]) -> list[str]:
    """The files that are read besides weights."""
    return [name for name in names if "/" not in name and any(fnmatch.fnmatchcase(name, it) for it in SMALL)]


def index_of(names: Iterable[str]) -> str:
    """The index of the shards that are read; empty where the weights are one file, or there are none."""
    there = set(names)
    for name in MODELS:
        if name in there:
            return ""
        if name + INDEX in there:
            return name + INDEX
    return ""


def has_weights(names: Iterable[str]) -> bool:
    """Whether a repository has weights of a model or an adapter that are read, besides GGUF files."""
    there = [name for name in names if "/" not in name]
    single = any(name in MODELS for name in there)
    return bool(single or index_of(there) or any(fnmatch.filter(there, it) for kind in ADAPTERS for it in kind))


def weights(names: Iterable[str], read_index: Callable[[str], bytes]) -> list[str]:
    """The files of weights that are read, with their index; empty where there are none of a known name.

    Args:
        names: All files of the repository.
        read_index: The content of an index.

    Raises:
        CheckpointError: The index is damaged.
    """
    there = [name for name in names if "/" not in name]
    index = index_of(there)
    if index:
        return [index, *_shards(index, read_index(index))]
    single = next((name for name in MODELS if name in there), None)
    adapters = (next(filter(None, (fnmatch.filter(there, it) for it in kind)), []) for kind in ADAPTERS)
    return ([single] if single else []) + [name for found in adapters for name in found]


def _shards(index: str, content: bytes) -> list[str]:
    try:
        found = sorted(set(parse_json(content)["weight_map"].values()))
        if outside := [name for name in found if PurePosixPath(name).name != name]:
            raise ValueError(f"{outside[0]!r} is not a file of the folder")
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a weight index: {type(error).__name__}: {error}") from None


def including(choice: str) -> str:
    """The option of the hubs' own commands that leaves out other models in GGUF; empty where none is chosen."""
    return f" --include '*{GgufModel((choice,), 0).stem}*'" if choice else ""
