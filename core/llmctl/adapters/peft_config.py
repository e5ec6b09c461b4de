"""``adapter_config.json`` of PEFT: reading it, checking for unsupported settings, writing it.

Tensors are read in ``peft_format``. Paths of layers are those in the torch model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmctl.adapters import peft_modules, targets
from llmctl.adapters.adapter import Adapter, LoraWeights, alpha_of, scale_of
from llmctl.adapters.config_values import Rule, check_values, is_count, is_number
from llmctl.card.dims import Dims
from llmctl.errors import CheckpointError
from llmctl.io import patterns
from llmctl.io.json_object import read_json

CONFIG = "adapter_config.json"
PLACE = "the adapter's configuration"

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "lora_bias": (False, None),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "kasa_config": (None,),
    "arrow_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
}
"""Unsupported settings, with the values that turn them off."""

KNOWN = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights", "base_model_name_or_path",
    "modules_to_save", "trainable_token_indices",
)  # fmt: skip
NO_EFFECT = (
    "task_type", "inference_mode", "fan_in_fan_out", "auto_mapping", "revision", "peft_version", "runtime_config",
    "megatron_config", "megatron_core", "corda_config", "eva_config", "loftq_config", "lora_ga_config",
    "qalora_group_size", "ensure_weight_tying", "modules_to_tie",
)  # fmt: skip
"""Settings that only describe the training or other runtimes."""


def _are_names(value: Any) -> bool:
    if isinstance(value, str):
        return patterns.is_pattern(value)
    return not value or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_tokens(value: Any) -> bool:
    groups = value.values() if isinstance(value, dict) else [value or []]
    return all(isinstance(ids, list) and all(_is_integer(token) and token >= 0 for token in ids) for ids in groups)


def _by_pattern(value: Any, fits: Callable[[Any], bool]) -> bool:
    return not value or (
        isinstance(value, dict)
        and all(patterns.is_pattern(_ending(key)) and fits(number) for key, number in value.items())
    )


RULES: Mapping[str, Rule] = {
    "r": (is_count, "an integer above 0"),
    "lora_alpha": (is_number, "a number"),
    "lora_dropout": (is_number, "a number"),
    "target_modules": (_are_names, "a list of names or a regular expression"),
    "exclude_modules": (_are_names, "a list of names or a regular expression"),
    "layers_to_transform": (
        lambda value: value is None or _is_integer(value) or (isinstance(value, list) and all(map(_is_integer, value))),
        "an integer or a list of them",
    ),
    "rank_pattern": (
        lambda value: _by_pattern(value, is_count),
        "integers above 0 by regular expression",
    ),
    "alpha_pattern": (lambda value: _by_pattern(value, is_number), "numbers by regular expression"),
    "modules_to_save": (
        lambda value: not value or (isinstance(value, list) and all(isinstance(name, str) and name for name in value)),
        "a list of names",
    ),
    "trainable_token_indices": (_are_tokens, "a list of token ids, or such lists by the name of a module"),
}
"""Valid values of the settings that are used."""

UNCHANGED_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that do not change the base model."""


def read_config(folder: Path) -> dict[str, Any]:
    """Reads and checks ``adapter_config.json``.

    Raises:
        CheckpointError: A setting is not supported or not valid.
        FileError: The file cannot be read.
    """
    path = folder / CONFIG
    config = read_json(path, required=True)
    unsupported = [
        f"{key}={config[key]!r}" for key, values in NEUTRAL.items() if key in config and config[key] not in values
    ]
    unsupported += [f"{key}={value!r}" for key, value in config.items()
            if value and key not in (*NEUTRAL, *KNOWN, *NO_EFFECT)]  # fmt: skip
    if unsupported:
        raise CheckpointError(
            f"{path}: {', '.join(unsupported)} is not supported; LoRA and DoRA of linear layers are, and whole modules and rows of "
            "tokens beside them"
        )
    start = config.get("init_lora_weights", True)
    if start not in UNCHANGED_BASE:
        raise CheckpointError(
            f"{path}: init_lora_weights={start!r} changes the base model, and the files do not hold the change; save the "
            "adapter with path_initial_model_for_weight_conversion, which converts it to plain LoRA"
        )
    check_values(path, {"r": None, **config}, RULES)
    return config


def make_config(layers: Mapping[str, LoraWeights], adapter: Adapter, plugin: Any, dims: Dims) -> dict[str, Any]:
    """The content of ``adapter_config.json``.

    Args:
        layers: Path in the torch model -> LoRA weights.
        adapter: The adapter.
        plugin: Plugin of the base model's family.
        dims: Dims of the model with the adapter.
    """
    rs = adapter.rank_stabilised
    ranks = {torch: part.rank for torch, part in layers.items()}
    alphas = {torch: alpha_of(part.scale, part.rank, rs) for torch, part in layers.items()}
    (rank, _), (alpha, _) = Counter(ranks.values()).most_common(1)[0], Counter(alphas.values()).most_common(1)[0]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": _target_modules(list(layers), plugin, dims),
        "fan_in_fan_out": any(row.torch_layout == "same" for row in plugin.card.params),
        "bias": "none",
        "use_rslora": rs,
        "use_dora": any(part.magnitude is not None for part in layers.values()),
        "init_lora_weights": True,
        **peft_modules.settings(adapter, plugin, dims),
        "rank_pattern": {torch: n for torch, n in ranks.items() if n != rank},
        "alpha_pattern": {torch: n for torch, n in alphas.items() if n != alpha},
    }


def selected_modules(
    config: Mapping[str, Any], known: Mapping[str, list[str]], plugin: Any, dims: Dims, folder: Path
) -> list[str]:
    """Paths in the torch model of the layers that the configuration selects."""
    names, excluded = config.get("target_modules"), config.get("exclude_modules") or []
    only = config.get("layers_to_transform")
    numbers = None if only is None else [only] if isinstance(only, int) else list(only)
    rows = targets.linears(plugin.card, dims)
    selected_paths = [
        torch
        for torch, paths in known.items()
        if (names == "all-linear" or _named(torch, names))
        and not _named(torch, excluded)
        and (numbers is None or rows[paths[0]].layer in numbers)
    ]
    if not selected_paths:
        raise CheckpointError(
            f"{folder / CONFIG}: target_modules={names!r} matches no linear layer of {plugin.card.name}; "
            "the adapter belongs to another model"
        )
    return selected_paths


def rank_and_scale(config: Mapping[str, Any], torch: str) -> tuple[int, float]:
    """Rank and scale of a layer."""
    rank = int(_pattern(config.get("rank_pattern"), torch, config["r"]))
    alpha = float(_pattern(config.get("alpha_pattern"), torch, config.get("lora_alpha", 8)))
    return rank, scale_of(alpha, rank, bool(config.get("use_rslora", False)))


def _target_modules(selected_paths: list[str], plugin: Any, dims: Dims) -> list[str]:
    """The last components of the paths if they select exactly these layers, else the whole paths."""
    mappings = plugin.hooks.weight_map(card=plugin.card, dims=dims, source="torch")
    known = dict.fromkeys(targets.module_of(r.source) for r in mappings if r.source.endswith(".weight"))
    short = list(dict.fromkeys(path.rpartition(".")[2] for path in selected_paths))
    selected = [path for path in known if any(targets.matches(path, name) for name in short)]
    return sorted(short) if set(selected) == set(selected_paths) else selected_paths


def _named(torch: str, names: Any) -> bool:
    if isinstance(names, str):
        return patterns.matches(names, torch, PLACE)
    return any(targets.matches(torch, name) for name in names or [])


def _pattern(by_pattern: Any, torch: str, default: Any) -> Any:
    """The value of the first key that is the path's end, read as a regular expression as peft does."""
    found = (
        value for key, value in (by_pattern or {}).items() if patterns.matches(_ending(key), torch, PLACE, whole=False)
    )
    return next(found, default)


def _ending(key: str) -> str:
    """The expression of names that end in what a key of a pattern matches, as peft has it."""
    return rf"(.*\.)?({key})$"
