"""``quantization_config`` of config.json: which format a checkpoint has, or why it cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmctl.errors import ConfigError

KEY = "quantization_config"
READ = "gptq (2, 3, 4 and 8 bits), awq (4 bits, gemm), compressed-tensors (pack-quantized, int-quantized) and bitsandbytes (nf4 and fp4)"
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
    """

    method: str
    bits: int
    group: int = -1
    symmetric: bool = True
    v2: bool = False
    several: tuple[int, ...] = ()

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
        return f"{self.method} codes of {self.bits} bits{groups}"


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
    method = config.get("quant_method", "gptq" if "bits" in config and "desc_act" in config else None)
    readers = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed, "bitsandbytes": _bitsandbytes}
    if not isinstance(method, str) or method not in readers:
        raise _unknown(where, f"quant_method={method!r}")
    return readers[method](config, where)


def _gptq(config: Mapping[str, Any], where: str) -> Scheme:
    form = config.get("checkpoint_format") or config.get("format") or "gptq"
    if not isinstance(form, str) or form not in GPTQ_FORMATS:
        raise _unknown(where, f"gptq with checkpoint_format={form!r}")
    if config.get("dynamic"):
        raise _unknown(where, "gptq with dynamic, settings of single layers")
    bits = _number(config, "bits", (2, 3, 4, 8), where)
    return Scheme("gptq", bits, _group(config, where), bool(config.get("sym", True)), GPTQ_FORMATS[form])


def _awq(config: Mapping[str, Any], where: str) -> Scheme:
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise _unknown(where, f"awq with version={version!r}")
    return Scheme("awq", _number(config, "bits", (4,), where), _group(config, where), False)


def _compressed(config: Mapping[str, Any], where: str) -> Scheme:
    form, groups = config.get("format"), config.get("config_groups")
    for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if config.get(key):
            raise _unknown(where, f"compressed-tensors with {key}")
    rows = [row for row in groups.values() if isinstance(row, dict)] if isinstance(groups, dict) else []
    found = {
        _kind(row["weights"], form, row.get("format"), where) for row in rows if isinstance(row.get("weights"), dict)
    }
    if not found:
        raise _unknown(where, f"compressed-tensors with format={form!r} and no config_groups of weights")
    return Scheme("compressed-tensors", min(found), several=tuple(sorted(found)))


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
