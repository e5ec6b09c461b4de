"""``quantization_config`` of config.json: which format a checkpoint has, or why it cannot be read."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from llmctl.errors import ConfigError
from llmctl.io.patterns import problem
from llmctl.quant.formats.scheme import Block, Rule, Scheme

KEY = "quantization_config"
READ = (
    "gptq (2, 3, 4 and 8 bits), awq (4 bits, gemm and gemv), auto-round in a layout of these, compressed-tensors, fp8, fbgemm_fp8, "
    "modelopt (FP8 and NVFP4) and bitsandbytes"
)
FORMER_KEY = "compression_config"
"""What llm-compressor called the key in 2024."""

KEYS = (KEY, FORMER_KEY)

OWN_BITS = "quantization_bit"
"""Key of models whose own code packs the weights, not 0."""

MLX = "quantization"
"""Key of models that MLX has quantized, an object."""

DECIDE = ("quant_method", "bits", "group_size", "checkpoint_format")
"""Settings that decide what codes stand for."""

FORMER_NAMES = {"w_bit": "bits", "q_group_size": "group_size", "format": "checkpoint_format", "method": "quant_method"}
"""Names that AutoAWQ and GPTQModel have had for settings -> their names now."""

AUTO_ROUND = {
    "auto_round:auto_gptq": ("gptq", "gptq"), "auto_round:auto_awq": ("awq", "gemm"), "auto_round": ("gptq", "gptq_v2"),
    "auto_round:gptqmodel": ("gptq", "gptq_v2"),
}  # fmt: skip
"""Layout of AutoRound's whole numbers -> the method and the format that have it, too."""

AUTO_ROUND_FLOATS: dict[str, tuple[tuple[int, ...], Block | None]] = {
    "mx_fp": ((4, 8), (1, 32)),
    "nv_fp": ((4,), (1, 16)),
    "fp": ((8,), None),
}
"""Beginning of the name of AutoRound's floats -> their bits, and what shares a scale."""

AUTO_ROUND_FLOAT_LAYOUTS = ("auto_round:llm_compressor", "auto_round:fp8_static", "auto_round:fp8")

MARKERS = ("qweight", "qzeros", "scales", "weight_packed", "weight_scale", "weight_scale_inv", "weight_scale_2", "SCB")
"""Tensors that only linears of codes have, by the last part of their names."""

GPTQ_FORMATS = {"gptq": False, "gptq_v2": True}
"""Name -> whether zero points are stored as they are."""

AWQ_VERSIONS = {"gemm": False, "gemv": True}
"""Name -> whether words have the inputs of an output."""

INTEGERS = {"pack-quantized": range(2, 9), "int-quantized": range(2, 9), "naive-quantized": range(2, 9)}
"""Format of compressed-tensors -> bits of its whole numbers."""

FLOATS = {
    "float-quantized": 8,
    "naive-quantized": 8,
    "mxfp8-quantized": 8,
    "nvfp4-pack-quantized": 4,
    "mxfp4-pack-quantized": 4,
}
"""Format of compressed-tensors -> bits of its floats."""

MIXED = "mixed-precision"
"""Format whose config groups have formats of their own."""

MODELOPT: dict[str, tuple[str, int, Block]] = {
    "FP8": ("fp8", 8, (0, 0)), "FP8_PER_CHANNEL_PER_TOKEN": ("fp8", 8, (1, 0)), "NVFP4": ("fp4", 4, (1, 16)),
    "W4A16_NVFP4": ("fp4", 4, (1, 16)),
}  # fmt: skip
"""``quant_algo`` of ModelOpt -> method, bits, and what shares a scale."""


def plain_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of GPTQ and AWQ under the names that they have now, and of ModelOpt without what is around them."""
    inner = config.get("quantization")
    config = {"quant_method": "modelopt", **inner} if isinstance(inner, dict) else config
    former = {FORMER_NAMES[name]: value for name, value in config.items() if name in FORMER_NAMES and value is not None}
    return {
        **former,
        **{name: value for name, value in config.items() if name not in FORMER_NAMES and value is not None},
    }


def refuse_own_bits(config: Mapping[str, Any], where: str) -> None:
    """Refuses weights that a model's own code packed, or MLX.

    Raises:
        ConfigError: They are.
    """
    if bits := config.get(OWN_BITS):
        raise _unknown(where, f"{OWN_BITS}={bits!r}, a layout of its own code")
    if isinstance(config.get(MLX), dict):
        raise _unknown(where, f"{MLX}={config[MLX]!r}, the layout of MLX")


def read_scheme(config: Any, where: str) -> Scheme:
    """The scheme that a ``quantization_config`` describes.

    Args:
        config: The object.
        where: Its file, for messages.

    Raises:
        ConfigError: It is not one of those in ``READ``.
    """
    if not isinstance(config, dict):
        raise ConfigError(f"{where}: {KEY}={config!r} is not an object")
    readers: dict[str, Callable[[Mapping[str, Any], str], Scheme]] = {
        "gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed, "bitsandbytes": _bitsandbytes, "fp8": _fp8,
        "fbgemm_fp8": _fbgemm, "modelopt": _modelopt, "modelopt_fp4": _modelopt, "auto-round": _auto_round,
        "intel/auto-round": _auto_round,
    }  # fmt: skip
    if isinstance(config.get(KEY), dict):
        config = {**config, **config[KEY]}  # as early llm-compressor nested it
    settings = plain_settings(config)
    stated = settings.get("quant_method", _method_of(config))
    method = stated.lower().replace("compressed_tensors", "compressed-tensors") if isinstance(stated, str) else ""
    if method not in readers:
        raise _unknown(where, f"quant_method={stated!r}")
    if key := next((key for key in ("kv_cache_scheme", "kv_cache_quant_algo") if settings.get(key)), ""):
        # It says nothing of weights. What is computed differs by the rounding of the cache, which --kv decides.
        warnings.warn(f"{where}: {key} is not used; keys and values are cached as --kv says", UserWarning, stacklevel=2)
    return readers[method](config if method == "compressed-tensors" else settings, where)


def _method_of(config: Mapping[str, Any]) -> str | None:
    """The method of settings that AutoGPTQ or AutoAWQ wrote before they named it."""
    if "bits" in config and "desc_act" in config:
        return "gptq"
    return "awq" if "w_bit" in config else None


def _auto_round(config: Mapping[str, Any], where: str) -> Scheme:
    """AutoRound's settings: those of the layout that it wrote."""
    layout, kind = config.get("packing_format"), config.get("data_type", "int")
    method, form = AUTO_ROUND.get(str(layout), ("auto-round", ""))
    if (kind == "int") is not bool(form) or (kind != "int" and layout not in AUTO_ROUND_FLOAT_LAYOUTS):
        raise _unknown(where, f"{config['quant_method']} with packing_format={layout!r} and data_type={kind!r}")
    own = config.get("extra_config") or {}
    rows = own.items() if isinstance(own, dict) else ()
    inner = {**config, "quant_method": method, "checkpoint_format": form}
    read = {"gptq": _gptq, "awq": _awq, "auto-round": _auto_round_floats}[method]
    rules = [
        Rule(_pattern(f"re:.*(?:{name})" if set(name) & set("*?+^$|[](){}\\") else name, where), _own(row, inner, read, name, where))
        for name, row in rows
    ]  # fmt: skip
    # A whole name goes before an expression that fits it, too.
    return replace(read(inner, where), rules=tuple(sorted(rules, key=lambda rule: rule.pattern.startswith(".*"))))


def _auto_round_floats(config: Mapping[str, Any], where: str) -> Scheme:
    kind, bits = str(config.get("data_type")), config.get("bits")
    for beginning, (widths, block) in AUTO_ROUND_FLOATS.items():
        if kind.startswith(beginning) and type(bits) is int and bits in widths:
            return Scheme("fp8" if bits == 8 else "fp4", bits, blocks=(block,))
    raise _unknown(where, f"auto-round with data_type={kind!r} and bits={bits!r}")


def _own(
    row: Any, config: Mapping[str, Any], read: Callable[[Mapping[str, Any], str], Scheme], name: str, where: str
) -> Scheme | None:
    """How layers with settings of their own are quantized; None = they are floats."""
    settings = row if isinstance(row, dict) else {}
    kept = {key: value for key, value in settings.items() if value is not None}
    if kept.get("bits", config.get("bits")) in (16, 32):
        return None
    try:
        return read({**config, "dynamic": None, **plain_settings(kept)}, where)
    except ConfigError as error:
        raise ConfigError(f"{error} (the settings of {name!r})") from None


def _pattern(target: str, where: str) -> str:
    """A target as an expression that fits the beginning of names: ``re:`` and an expression, or a name.

    Raises:
        ConfigError: It is no expression.
    """
    if not target.startswith("re:"):
        return rf"{re.escape(target)}\Z"
    pattern = target.removeprefix("re:")
    if reason := problem(pattern):
        raise ConfigError(f"{where}: {pattern[:80]!r} in {KEY} is no regular expression: {reason}")
    return pattern


def _gptq(config: Mapping[str, Any], where: str) -> Scheme:
    form = "marlin" if config.get("is_marlin_format") else config.get("checkpoint_format", "gptq")
    if not isinstance(form, str) or form not in GPTQ_FORMATS:
        raise _unknown(where, f"gptq with checkpoint_format={form!r}")
    dynamic = config.get("dynamic") or {}
    if not isinstance(dynamic, dict):
        raise _unknown(where, f"gptq with dynamic={dynamic!r}")
    rules = tuple(
        Rule(
            _pattern("re:" + name.removeprefix("+:").removeprefix("-:"), where),
            None if name.startswith("-:") else _own(row, config, _gptq, name, where),
        )
        for name, row in dynamic.items()
    )
    if not isinstance(config.get("sym", True), bool):
        raise ConfigError(f"{where}: sym={config['sym']!r} must be true or false")
    bits = _number(config, "bits", (2, 3, 4, 8), where)
    return Scheme("gptq", bits, _group(config, where), config.get("sym", True), GPTQ_FORMATS[form], rules=rules)


def _awq(config: Mapping[str, Any], where: str) -> Scheme:
    version = str(config.get("version") or config.get("checkpoint_format") or "gemm").lower()
    if version not in AWQ_VERSIONS:
        raise _unknown(where, f"awq with version={version!r}")
    bits = _number(config, "bits", (4,), where)
    return Scheme("awq", bits, _group(config, where), False, rows=AWQ_VERSIONS[version])


def _fp8(config: Mapping[str, Any], where: str) -> Scheme:
    """FP8 of transformers in blocks, and of vLLM with a scale for each weight or output."""
    if (experts := config.get("expert_dtype", "fp8")) != "fp8":
        raise _unknown(where, f"fp8 with expert_dtype={experts!r}")
    stated = config.get("weight_block_size")
    if stated is None:
        return Scheme("fp8", 8, blocks=(None,))
    return Scheme("fp8", 8, blocks=(_block(stated, "fp8 with weight_block_size", where),))


def _fbgemm(config: Mapping[str, Any], where: str) -> Scheme:
    return Scheme("fp8", 8, blocks=((1, 0),))


def _modelopt(config: Mapping[str, Any], where: str) -> Scheme:
    algorithm = config.get("quant_algo")
    if not isinstance(algorithm, str) or algorithm not in MODELOPT:
        raise _unknown(where, f"modelopt with quant_algo={algorithm!r}")
    method, bits, block = MODELOPT[algorithm]
    return Scheme(method, bits, blocks=(block,))


def _block(stated: Any, what: str, where: str) -> Block:
    """Outputs and inputs of a block, from a list or compressed-tensors' ``128x128``."""
    if isinstance(stated, str) and re.fullmatch(r"\d{1,9}x\d{1,9}", stated):
        stated = [int(size) for size in stated.split("x")]
    whole = isinstance(stated, list) and len(stated) == 2 and all(type(size) is int and size > 0 for size in stated)
    if not whole:
        raise _unknown(where, f"{what}={stated!r}")
    return stated[0], stated[1]


def _compressed(config: Mapping[str, Any], where: str) -> Scheme:
    form, groups = config.get("format"), config.get("config_groups")
    for key in ("sparsity_config", "transform_config"):
        value = config.get(key)
        if value and not (isinstance(value, dict) and value.get("format") == "dense"):
            raise _unknown(where, f"compressed-tensors with {key}")
    rows = [row for row in groups.values() if isinstance(row, dict)] if isinstance(groups, dict) else []
    found = [(_of_group(row, form, where), row.get("targets")) for row in rows if isinstance(row.get("weights"), dict)]
    if not found:
        raise _unknown(where, f"compressed-tensors with format={form!r} and no config_groups of weights")
    schemes = [scheme for scheme, _ in found]
    named = sorted(_named(found), key=lambda pair: (pair[0].startswith("re:"), pair[0]))
    rules = tuple(Rule(_pattern(target, where), scheme) for target, scheme in named)
    classes = [scheme for scheme, targets in found if isinstance(targets, list) and _CLASS & {*map(str, targets)}]
    return replace(classes[0] if len({*classes}) == 1 else _any_of(schemes), rules=rules)


_CLASS = {"Linear"}


def _named(found: list[tuple[Scheme, Any]]) -> Iterator[tuple[str, Scheme]]:
    """Targets that are names of modules or expressions for them, with their schemes."""
    for scheme, targets in found:
        for target in targets if isinstance(targets, list) else ():
            if isinstance(target, str) and target not in _CLASS:
                yield target, scheme


def _any_of(schemes: list[Scheme]) -> Scheme:
    """The scheme of linears that may have any of these; the shapes of their tensors tell which."""
    several, sizes = (sorted({one for s in schemes for one in getattr(s, name)}) for name in ("several", "sizes"))
    blocks = tuple(dict.fromkeys(block for scheme in schemes for block in scheme.blocks))
    bits = min(scheme.bits for scheme in schemes)
    return Scheme("compressed-tensors", bits, several=tuple(several), sizes=tuple(sizes), blocks=blocks)


def _of_group(row: Mapping[str, Any], form: Any, where: str) -> Scheme:
    """How the weights of a config group are quantized, which may have a format of its own."""
    weights: Mapping[str, Any] = row["weights"]
    form = (row.get("format") or form) if form == MIXED else form
    bits, kind = weights.get("num_bits"), weights.get("type", "int")
    if not isinstance(form, str) or form not in {**INTEGERS, **FLOATS}:
        raise _unknown(where, f"compressed-tensors with format={form!r}")
    if kind == "int" and type(bits) is int and bits in INTEGERS.get(form, ()):
        symmetric = weights.get("symmetric", True) is not False
        return Scheme("compressed-tensors", bits, symmetric=symmetric, several=(bits,), sizes=(_size(weights, where),))
    if kind == "float" and type(bits) is int and bits == FLOATS.get(form):
        return Scheme("compressed-tensors", bits, blocks=(_shared(weights, where),))
    raise _unknown(where, f"compressed-tensors with format={form!r} and weights of {bits} bits, type {kind!r}")


def _size(weights: Mapping[str, Any], where: str) -> int:
    """Inputs that share a scale; 0 = all, -1 = as the tensors say."""
    size = weights.get("group_size")
    strategy = weights.get("strategy") or ("group" if isinstance(size, int) and size > 0 else "channel")
    if strategy in ("channel", "tensor"):
        return 0
    if strategy == "group" and size is None:
        return -1
    if strategy != "group" or not isinstance(size, int) or size < 1:
        raise _unknown(where, f"compressed-tensors with strategy={strategy!r} and group_size={size!r}")
    return size


def _shared(weights: Mapping[str, Any], where: str) -> Block | None:
    """Which floats share a scale."""
    strategy, size = weights.get("strategy"), weights.get("group_size")
    if strategy == "block":
        return _block(weights.get("block_structure"), "compressed-tensors with block_structure", where)
    if strategy in ("group", "tensor_group") and type(size) is int and size > 0:
        return 1, size
    if strategy in ("tensor", "channel"):
        return (0, 0) if strategy == "tensor" else (1, 0)
    if strategy is not None:
        raise _unknown(where, f"compressed-tensors with strategy={strategy!r} and group_size={size!r}")
    return (1, size) if type(size) is int and size > 0 else None


def _bitsandbytes(config: Mapping[str, Any], where: str) -> Scheme:
    kind = config.get("bnb_4bit_quant_type", "fp4")
    if config.get("load_in_8bit"):
        return Scheme("bitsandbytes", 8)
    if not config.get("load_in_4bit") or kind not in ("nf4", "fp4"):
        raise _unknown(where, f"bitsandbytes with load_in_4bit={config.get('load_in_4bit', False)!r} and type {kind!r}")
    return Scheme("bitsandbytes", 4)


def _number(config: Mapping[str, Any], key: str, allowed: tuple[int, ...], where: str) -> int:
    value = config.get(key)
    if value not in allowed or isinstance(value, bool):
        raise _unknown(where, f"{config.get('quant_method', 'gptq')} with {key}={value!r}")
    return int(value)


def _group(config: Mapping[str, Any], where: str) -> int:
    value = config.get("group_size", -1)
    if not isinstance(value, int) or isinstance(value, bool) or (value < 1 and value != -1):
        raise ConfigError(f"{where}: group_size={value!r} must be a number of inputs above 0, or -1")
    return value


def _unknown(where: str, what: str) -> ConfigError:
    return ConfigError(
        f"{where}: the model is quantized as {what}, which llmctl does not read. It reads {READ}; use the float model, or a "
        "checkpoint of it in one of these formats"
    )
