"""The configuration of a model in the metadata of a GGUF file: as config.json has it, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl import plugins
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.checkpoint.formats.gguf import GgufFile
from llmctl.checkpoint.gguf.names import FREQUENCIES, OUTER, present
from llmctl.errors import CheckpointError, UnsupportedError

ARCHITECTURE, FILE_TYPE = "general.architecture", "general.file_type"

SIZES = {
    "layers": "block_count", "max_positions": "context_length", "hidden": "embedding_length", "ffn": "feed_forward_length",
    "heads": "attention.head_count", "kv_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
    "experts": "expert_count", "top_k": "expert_used_count",
}  # fmt: skip
"""Field of a card -> key after the architecture, of whole numbers."""

NORMS = {"rmsnorm": "attention.layer_norm_rms_epsilon", "layernorm": "attention.layer_norm_epsilon"}
THETA, ROTATED, SCALING = "rope.freq_base", "rope.dimension_count", "rope.scaling."
READ = frozenset({*SIZES.values(), *NORMS.values(), THETA, ROTATED, "attention.value_length"})
IDLE = frozenset({"vocab_size", "tensor_data_layout"})
"""Keys that repeat what tensors say, or say nothing."""

BASE = 10000.0
"""Of RoPE, where nothing is said."""

SCALED = ("type", "factor", "original_context_length", "finetuned")
YARN = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow", "yarn_attn_factor": "attention_factor"}
"""Keys of YaRN after ``SCALING`` -> those of ``rope_scaling`` in config.json."""

NEUTRAL = {SCALING + "yarn_ext_factor": 1.0, SCALING + "attn_factor": 1.0, SCALING + "yarn_log_multiplier": 0.0}
"""Values with which keys that are not read say nothing."""

NEEDED = ("layers", "hidden", "ffn", "heads")
TRAINED = "original_max_position_embeddings"
BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, TRAINED: 8192}
"""Of scaling by wavelength, whose frequencies are a tensor in GGUF; all published models have these."""

BOS, ENDS = "tokenizer.ggml.bos_token_id", tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
"""Tokens that begin a text, and that end one: eos, the end of a turn, and of a message."""

TYPE, MODEL = "general.type", "model"


def plugin_of(file: GgufFile) -> plugins.Plugin:
    """The family of a file.

    Raises:
        UnsupportedError: It holds no model, or no installed family has its architecture.
    """
    if (kind := file.metadata.get(TYPE, MODEL)) != MODEL:
        raise UnsupportedError(f"{file.path} holds no model: its {TYPE} is {kind!r}; only models are read from GGUF")
    named = str(file.metadata.get(ARCHITECTURE))
    experts = bool(file.metadata.get(f"{named}.{SIZES['experts']}"))
    known = {}
    for name in plugins.Families().names:
        try:
            plugin = plugins.load(name)
        except plugins.PluginError:
            continue
        if plugin.card.gguf is not None:
            known[plugin.card.gguf.architecture, plugin.card.moe is not None] = plugin
    if (named, experts) not in known:
        listed = ", ".join(f"{one} with experts" if moe else one for one, moe in sorted(known))
        kind = " with experts" if experts else ""
        raise UnsupportedError(
            f"{file.path} holds a model of the architecture {named!r}{kind}, and no installed family reads it from GGUF; read are "
            f"{listed}. Use the model's checkpoint in Hugging Face's layout"
        )
    return known[named, experts]


def config_of(file: GgufFile, card: Family) -> dict[str, Any]:
    """What ``config.json`` would say of the model in a file.

    Raises:
        CheckpointError: The metadata lack a size, or do not fit the tensors.
        UnsupportedError: They ask for something that is not read.
    """
    own = f"{file.metadata[ARCHITECTURE]}."
    given = {key.removeprefix(own): value for key, value in file.metadata.items() if key.startswith(own)}
    sizes = SIZES | dict(card.gguf.sizes if card.gguf else {})
    read = READ | IDLE | {*sizes.values(), *(SCALING + key for key in (*SCALED, *YARN))}
    left = (key for key in given if key not in read)
    if unread := sorted(key for key in left if key not in NEUTRAL or str(given[key]) != str(NEUTRAL[key])):
        raise UnsupportedError(
            f"{file.path}: {own}{unread[0]}={given[unread[0]]!r} is not read, and leaving it out could change the results; use the "
            "model's checkpoint in Hugging Face's layout"
        )
    values: dict[str, Any] = {}
    for name, key in sizes.items():
        if key in given:
            values[name] = _count(file, own + key, given[key])
    if absent := [own + SIZES[name] for name in NEEDED if name not in values]:
        raise CheckpointError(f"{file.path} lacks the metadata {', '.join(absent)}; it is incomplete")
    if OUTER["embed"] + ".weight" not in file.tensors:
        raise CheckpointError(f"{file.path} has no tensor {OUTER['embed']}.weight; it is incomplete")
    values["vocab"] = file.tensors[OUTER["embed"] + ".weight"].shape[0]
    head_dim = values.get("head_dim", values["hidden"] // values["heads"])
    rotated = int(head_dim * (card.gguf.rotated if card.gguf else 1))
    for key, width in ((ROTATED, rotated), ("attention.value_length", head_dim)):
        if given.get(key, width) != width:
            raise UnsupportedError(
                f"{file.path}: {own}{key}={given[key]} is not {width} of the {head_dim} of a head, which is not read"
            )
    for name, key in (*(("norm_eps", key) for key in NORMS.values()), ("rope_theta", THETA)):
        if key in given:
            values[name] = float(given[key])
    if "rope_theta" not in {setting.name for setting in card.settings} and float(given.get(THETA, BASE)) != BASE:
        raise UnsupportedError(
            f"{file.path}: {own}{THETA}={given[THETA]} is not read for {card.name}, whose models have {BASE:g}"
        )
    implied = card.gguf.implied if card.gguf else {}
    values |= implied(given) if callable(implied) else implied
    values["rope_scaling"] = _scaling(file, card, own, given, head_dim, values.get("rope_theta", BASE))
    everything = {
        **{setting.name: setting.default for setting in card.settings},
        "kv_heads": values["heads"],
        **values,
        "head_dim": head_dim,
    }
    values |= present(card, everything, frozenset(file.tensors))
    config: dict[str, Any] = {"architectures": list(card.architectures[:1]), "model_type": card.model_type}
    config["torch_dtype"] = _dtype(file)
    config |= {setting.key: values[setting.name] for setting in card.settings if setting.key and setting.name in values}
    ends = list(dict.fromkeys(token for key in ENDS if isinstance(token := file.metadata.get(key), int)))
    config |= {"bos_token_id": file.metadata.get(BOS), "eos_token_id": ends if ends[1:] else ends[0] if ends else None}
    return {key: value for key, value in config.items() if value is not None}


def metadata_of(card: Family, dims: Dims) -> dict[str, Any]:
    """The metadata of a model; RoPE that GGUF has as a tensor is in ``frequencies``.

    Raises:
        UnsupportedError: GGUF does not have the family, or its RoPE scaling.
    """
    if card.gguf is not None and not card.gguf.written:
        raise UnsupportedError(f"models of the family {card.name} are read from GGUF, and not written")
    if card.gguf is None:
        raise UnsupportedError(f"models of the family {card.name} are not written as GGUF")
    own = f"{card.gguf.architecture}."
    found: dict[str, Any] = {ARCHITECTURE: card.gguf.architecture}
    for name, key in SIZES.items():
        if dims.get(name) is not None:
            found[own + key] = int(dims[name])
    if card.moe is not None:
        found[own + SIZES["top_k"]] = int(dims.get("top_k") or card.moe.top_k)
    found[own + "attention.value_length"] = found[own + ROTATED] = int(dims.head_dim)
    found[own + "vocab_size"] = int(dims.vocab)
    found[own + NORMS[card.norm]] = float(dims.norm_eps)
    found[own + THETA] = float(dims.rope_theta)
    scaling = dims.get("rope_scaling") or {}
    kind = scaling.get("rope_type")
    if kind in ("linear", "yarn"):
        found[own + SCALING + "type"], found[own + SCALING + "factor"] = kind, float(scaling["factor"])
        if TRAINED in scaling:
            found[own + SCALING + "original_context_length"] = int(scaling[TRAINED])
        rest = {
            name: value
            for name, value in scaling.items()
            if value is not None and name not in ("rope_type", "type", "factor", TRAINED)
        }
        if kind == "yarn":
            found |= {own + SCALING + key: float(rest.pop(name)) for key, name in YARN.items() if name in rest}
        if rest:
            raise UnsupportedError(f"RoPE scaling with {', '.join(rest)} is not written as GGUF")
    elif kind is not None and not set(BANDS) <= set(scaling):
        raise UnsupportedError(f"RoPE scaling of type {kind!r} is not written as GGUF")
    return found


def frequencies(dims: Dims) -> NDArray[np.float32] | None:
    """The tensor of scaling by wavelength; None = no such scaling."""
    scaling = dims.get("rope_scaling") or {}
    if not set(BANDS) <= set(scaling):
        return None
    return _divisors(int(dims.head_dim), float(dims.rope_theta), scaling["factor"], scaling)


def _count(file: GgufFile, key: str, value: Any) -> int:
    if isinstance(value, np.ndarray) and len(value) and (value == value[0]).all():
        value = value[0].item()
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UnsupportedError(
            f"{file.path}: {key}={value!r} differs between layers or is no number, which is not read"
        )
    return value


def _dtype(file: GgufFile) -> str:
    kinds = {
        stored.type.dtype if stored.type.decode is None else "float16"
        for stored in file.tensors.values()
        if len(stored.shape) > 1
    }
    return kinds.pop() if len(kinds) == 1 else "float32"


def _scaling(
    file: GgufFile, card: Family, own: str, given: Mapping[str, Any], head_dim: int, theta: float
) -> dict[str, Any] | None:
    """``rope_scaling`` of config.json."""
    kind = given.get(SCALING + "type", "none")
    if FREQUENCIES in file.tensors:
        return _by_wavelength(file, card, head_dim, theta)
    if kind == "none" or float(given.get(SCALING + "factor", 1.0)) == 1.0:
        return None
    if kind not in ("linear", "yarn"):
        raise UnsupportedError(f"{file.path}: {own}{SCALING}type={kind!r} is not read; linear and yarn are")
    scaling = {"rope_type": kind, "factor": float(given[SCALING + "factor"])}
    if kind == "yarn" and SCALING + "original_context_length" in given:
        scaling[TRAINED] = int(given[SCALING + "original_context_length"])
    if kind == "yarn":
        scaling |= {name: float(given[SCALING + key]) for key, name in YARN.items() if SCALING + key in given}
    return scaling


def _by_wavelength(file: GgufFile, card: Family, head_dim: int, theta: float) -> dict[str, Any]:
    """The settings that give the frequencies of a file."""
    stored = file.tensors[FREQUENCIES]
    if stored.type.decode is not None or stored.type.dtype != "float32" or stored.shape != (head_dim // 2,):
        raise CheckpointError(
            f"{file.path}: {FREQUENCIES} is {stored.type.name} {list(stored.shape)}, not F32 [{head_dim // 2}]"
        )
    values = np.fromfile(stored.file, "<f4", head_dim // 2, offset=stored.offset)
    scaling: dict[str, Any] = {
        "rope_type": card.gguf.by_wavelength if card.gguf else "",
        "factor": float(values.max()),
        **BANDS,
    }
    if not scaling["rope_type"] or not np.allclose(
        values, _divisors(head_dim, theta, scaling["factor"], scaling), rtol=1e-3
    ):
        raise UnsupportedError(f"{file.path}: {FREQUENCIES} are of a RoPE scaling that is not read")
    return scaling


def _divisors(head_dim: int, theta: float, factor: float, bands: Mapping[str, Any]) -> NDArray[np.float32]:
    """By what each frequency is divided."""
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = bands["low_freq_factor"], bands["high_freq_factor"]
    smooth = np.clip((bands[TRAINED] / wavelength - low) / (high - low), 0.0, 1.0)
    return np.asarray(1 / ((1 - smooth) / factor + smooth), np.float32)
