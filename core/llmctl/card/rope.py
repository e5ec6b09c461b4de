"""RoPE frequencies and their scaling rules, in plain Python floats.

No paddle here, so that a configuration can be checked early; ``nn/rotary.py`` applies the params.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmctl.errors import ConfigError


@dataclass(frozen=True)
class RopeParams:
    """What the frequencies depend on.

    Attributes:
        head_dim: Rotated width of a head.
        theta: Base of the frequencies.
        max_positions: Trained length.
        length: Length of the sequences at hand; 0 = the trained length.
    """

    head_dim: int
    theta: float
    max_positions: int = 0
    length: int = 0


@dataclass(frozen=True)
class RopeRule:
    """How a kind of ``rope_scaling`` extends the context.

    Attributes:
        apply: Frequencies from the parameters and the content of ``rope_scaling``.
        keys: Keys that it reads there.
        by_length: Whether the frequencies depend on the length of the sequence.
    """

    apply: Callable[[RopeParams, Mapping[str, Any]], list[float]]
    keys: tuple[str, ...] = ()
    by_length: bool = False


def rope_frequencies(params: RopeParams, scaling: Mapping[str, Any]) -> list[float]:
    """theta^(-2i/head_dim) for i in 0..head_dim/2 (https://arxiv.org/abs/2104.09864, section 3.2.2)."""
    return [params.theta ** (-i / params.head_dim) for i in range(0, params.head_dim, 2)]


def linear(params: RopeParams, scaling: Mapping[str, Any]) -> list[float]:
    """Position interpolation: all frequencies divided by ``factor`` (https://arxiv.org/abs/2306.15595)."""
    return [f / scaling["factor"] for f in rope_frequencies(params, scaling)]


def dynamic_ntk(params: RopeParams, scaling: Mapping[str, Any]) -> list[float]:
    """NTK-aware scaling: a base that grows with the length beyond the trained length."""
    ratio = max(params.length, params.max_positions) / params.max_positions
    stretch = scaling["factor"] * ratio - (scaling["factor"] - 1)
    theta = params.theta * stretch ** (params.head_dim / (params.head_dim - 2))
    return rope_frequencies(RopeParams(params.head_dim, theta), scaling)


def by_wavelength(params: RopeParams, scaling: Mapping[str, Any]) -> list[float]:
    """High frequencies weight, low ones divided by ``factor``, a ramp between (https://arxiv.org/abs/2407.21783)."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    trained = scaling["original_max_position_embeddings"]

    def scaled(frequency: float) -> float:
        rotations = trained * frequency / (2 * math.pi)
        weight = min(max((rotations - low) / (high - low), 0.0), 1.0)
        return float(weight * frequency + (1 - weight) * frequency / scaling["factor"])

    return [scaled(f) for f in rope_frequencies(params, scaling)]


ROPE_BY_WAVELENGTH = RopeRule(
    by_wavelength, ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
)
"""A rule that families add to ``ROPE_RULES`` under the ``rope_type`` of their checkpoints."""

ROPE_RULES: Mapping[str, RopeRule] = {
    "default": RopeRule(rope_frequencies),
    "linear": RopeRule(linear, ("factor",)),
    "dynamic": RopeRule(dynamic_ntk, ("factor",), by_length=True),
}
"""Rules by HF's ``rope_type``."""
_KIND = ("rope_type", "type")


def rope_rule(scaling: Mapping[str, Any] | None, rules: Mapping[str, RopeRule] = ROPE_RULES) -> RopeRule:
    """The rule for the ``rope_type`` (formerly ``type``) of HF's ``rope_scaling``; None means unscaled.

    Raises:
        ConfigError: It is not an object, the type or a key is unknown, a key is missing or its value is not a positive
            number.
    """
    if scaling is None or scaling == {}:
        return ROPE_RULES["default"]
    if not isinstance(scaling, Mapping):
        raise ConfigError(f"rope_scaling={scaling!r} is not an object with a rope_type")
    name = scaling.get("rope_type", scaling.get("type"))
    if name not in rules:
        raise ConfigError(f"rope_scaling: type {name!r} is not supported; supported: {', '.join(rules)}")
    unread = sorted(
        key for key, value in scaling.items() if value is not None and key not in (*_KIND, *rules[name].keys)
    )
    if unread:
        raise ConfigError(f"rope_scaling of type {name!r} does not know {', '.join(unread)}; it would be ignored")
    for key in rules[name].keys:
        value = scaling.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ConfigError(f"rope_scaling of type {name!r}: {key}={value!r} must be a number above 0")
    return rules[name]
