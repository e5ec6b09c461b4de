"""``quantization_config`` of config.json: which format a checkpoint has, or why it cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmctl.errors import ConfigError

KEY = "quantization_config"
READ = "gptq (2, 3, 4 and 8 bits), awq (4 bits, gemm), auto-round in the layout of these two, compressed-tensors (pack-quantized, int-quantized) and bitsandbytes (nf4 and fp4)"
FORMER_KEY = "compression_config"
"""What llm-compressor called the key in 2024."""

KEYS = (KEY, FORMER_KEY)

OWN_BITS = "quantization_bit"
"""Key of models whose own code packs the weights, not 0."""

DECIDE = ("quant_method", "bits", "group_size", "checkpoint_format")
"""Settings that decide what codes stand for."""

FORMER_NAMES = {"w_bit": "bits", "q_group_size": "group_size", "format": "checkpoint_format", "method": "quant_method"}
"""Names that AutoAWQ and GPTQModel have had for settings -> their names now."""

AUTO_ROUND = {"auto_round:auto_gptq": "gptq", "auto_round:auto_awq": "awq"}
"""Layout of AutoRound's files -> the method that has it, too."""

MARKERS = ("qweight", "qzeros", "scales", "weight_packed", "weight_scale")
"""Tensors that only linears of codes have, by the last part of their names."""

GPTQ_FORMATS = {"gptq": False, "gptq_v2": True}
"""Name -> whether zero points are stored as they are."""

INTEGER = {"pack-quantized": (4, 8), "int-quantized": (8,)}
"""Format of compressed-tensors -> bits of its weights."""

MIXED = "mixed-precision"
"""Format whose config groups have formats of their own."""


CODES = ("gptq", "awq", "compressed-tensors", "bitsandbytes")
"""Methods whose linears are codes with scales, as ``codes.Codes``."""

BLOCK = 64
"""Weights of bitsandbytes that share a scale, unless tensors say another number."""


@dataclass(frozen=True)
class Scheme:
    """How the linears of a checkpoint are quantized.

    Attributes:
        method: ``gptq``, ``awq``, ``compressed-tensors``; or ``bitsandbytes``, ``gguf`` or ``paddlenlp``, whose tensors say all else themselves.
        bits: Bits of a code; the fewest, where there are several.
        group: Inputs of a group; -1 = one group.
        symmetric: Whether zero points are all the middle of the range.
        v2: Of gptq: zero points are stored as they are.
        several: Of compressed-tensors: all numbers of bits; the shape of a linear's tensors tells which it has.
        sizes: Of compressed-tensors: all sizes of groups; 0 = one group, -1 = as the tensors say.
    """

    method: str
    bits: int
    group: int = -1
    symmetric: bool = True
    v2: bool = False
    several: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def keeps_codes(self) -> bool:
        """Whether the linears of a model in memory keep the codes; of other methods they are floats."""
        return self.method in CODES

    @property
    def stored_bits(self) -> float:
        """Bits of a weight in memory, with its share of scales and zero points."""
        if self.method == "bitsandbytes":
            return 4 + 32 / BLOCK
        in_group = max(self.group, 0)
        return (4 if max(self.several, default=self.bits) <= 4 else 8) + (
            16 * (1 if self.symmetric else 2) / in_group if in_group else 0
        )

    def __str__(self) -> str:
        groups = f" in groups of {self.group}" if self.group > 0 else ""
        bits = " and ".join(map(str, self.several or (self.bits,)))
        return f"{self.method} codes of {bits} bits{groups}"


def plain_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of GPTQ and AWQ under the names that they have now."""
    former = {FORMER_NAMES[name]: value for name, value in config.items() if name in FORMER_NAMES and value is not None}
    return {
        **former,
        **{name: value for name, value in config.items() if name not in FORMER_NAMES and value is not None},
    }


def refuse_own_bits(config: Mapping[str, Any], where: str) -> None:
    """Refuses weights that a model's own code packed.

    Raises:
        ConfigError: They are.
    """
    if bits := config.get(OWN_BITS):
        raise _unknown(where, f"{OWN_BITS}={bits!r}, a layout of its own code")


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
        "gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed, "bitsandbytes": _bitsandbytes,
        "auto-round": _auto_round, "intel/auto-round": _auto_round,
    }  # fmt: skip
    method = plain_settings(config).get("quant_method", _method_of(config))
    if not isinstance(method, str) or method not in readers:
        raise _unknown(where, f"quant_method={method!r}")
    return readers[method](config if method == "compressed-tensors" else plain_settings(config), where)


def _method_of(config: Mapping[str, Any]) -> str | None:
    """The method of settings that AutoGPTQ or AutoAWQ wrote before they named it."""
    if "bits" in config and "desc_act" in config:
        return "gptq"
    return "awq" if "w_bit" in config else None


def _auto_round(config: Mapping[str, Any], where: str) -> Scheme:
    """AutoRound's settings: those of the layout that it wrote."""
    layout, kind = config.get("packing_format"), config.get("data_type", "int")
    if layout not in AUTO_ROUND or kind != "int":
        raise _unknown(where, f"{config['quant_method']} with packing_format={layout!r} and data_type={kind!r}")
    method = AUTO_ROUND[layout]
    own = config.get("extra_config") or {}
    for name, row in own.items() if isinstance(own, dict) else ():
        _check_own(name, row if isinstance(row, dict) else {}, config, where)
    inner = {key: value for key, value in config.items() if key != "checkpoint_format"}
    return {"gptq": _gptq, "awq": _awq}[method]({**inner, "quant_method": method}, where)


def _check_own(name: str, row: Mapping[str, Any], config: Mapping[str, Any], where: str) -> None:
    """Checks that layers with settings of their own have floats, or codes as the others."""
    if row.get("bits", config.get("bits")) in (16, 32):
        return
    for key in ("bits", "group_size"):
        if row.get(key, config.get(key)) != config.get(key):
            raise _unknown(
                where,
                f"{config['quant_method']} with {key}={row[key]!r} for {name!r} and {config.get(key)!r} for others",
            )


def _gptq(config: Mapping[str, Any], where: str) -> Scheme:
    form = config.get("checkpoint_format", "gptq")
    if not isinstance(form, str) or form not in GPTQ_FORMATS:
        raise _unknown(where, f"gptq with checkpoint_format={form!r}")
    dynamic = config.get("dynamic") or {}
    if not isinstance(dynamic, dict):
        raise _unknown(where, f"gptq with dynamic={dynamic!r}")
    for pattern, row in dynamic.items():
        # What a rule leaves out of quantization is stored as floats.
        if not pattern.startswith("-:"):
            _check_own(pattern, row if isinstance(row, dict) else {}, {"quant_method": "gptq", **config}, where)
    if not isinstance(config.get("sym", True), bool):
        raise ConfigError(f"{where}: sym={config['sym']!r} must be true or false")
    bits = _number(config, "bits", (2, 3, 4, 8), where)
    return Scheme("gptq", bits, _group(config, where), config.get("sym", True), GPTQ_FORMATS[form])


def _awq(config: Mapping[str, Any], where: str) -> Scheme:
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise _unknown(where, f"awq with version={version!r}")
    return Scheme("awq", _number(config, "bits", (4,), where), _group(config, where), False)


def _compressed(config: Mapping[str, Any], where: str) -> Scheme:
    form, groups = config.get("format"), config.get("config_groups")
    for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        value = config.get(key)
        if value and not (isinstance(value, dict) and value.get("format") == "dense"):
            raise _unknown(where, f"compressed-tensors with {key}")
    rows = [row for row in groups.values() if isinstance(row, dict)] if isinstance(groups, dict) else []
    found = {
        _kind(row["weights"], form, row.get("format"), where) for row in rows if isinstance(row.get("weights"), dict)
    }
    if not found:
        raise _unknown(where, f"compressed-tensors with format={form!r} and no config_groups of weights")
    sizes = {_size(row["weights"], where) for row in rows if isinstance(row.get("weights"), dict)}
    return Scheme("compressed-tensors", min(found), several=tuple(sorted(found)), sizes=tuple(sorted(sizes)))


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


def _kind(weights: Mapping[str, Any], form: Any, own: Any, where: str) -> int:
    """The bits of the weights of a group, which may have a format of its own."""
    form = own if form == MIXED else form
    if not isinstance(form, str) or form not in INTEGER:
        raise _unknown(where, f"compressed-tensors with format={form!r}")
    bits, kind = weights.get("num_bits"), weights.get("type", "int")
    if kind != "int" or bits not in INTEGER[form]:
        raise _unknown(where, f"compressed-tensors with format={form!r} and weights of {bits} bits, type {kind!r}")
    return int(bits)


def _bitsandbytes(config: Mapping[str, Any], where: str) -> Scheme:
    kind = config.get("bnb_4bit_quant_type", "fp4")
    if config.get("load_in_8bit"):
        raise _unknown(where, "bitsandbytes with load_in_8bit")
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
