"""Rotary frequencies and their scaling rules, in plain Python floats.

No paddle here, so that a configuration can be checked early; the rotation itself is in ``position``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmctl.errors import ConfigError


@dataclass(frozen=True)
class Rotation:
    """What the frequencies depend on: width of a head, base, trained length, and the positions now in use."""

    head_dim: int
    theta: float
    max_positions: int = 0
    length: int = 0


@dataclass(frozen=True)
class Rule:
    """A way to stretch the context: the function, the keys it reads, whether the result depends on the length."""

    apply: Callable[[Rotation, Mapping[str, Any]], list[float]]
    keys: tuple[str, ...] = ()
    by_length: bool = False


def plain(rotation: Rotation, scaling: Mapping[str, Any]) -> list[float]:
    """theta^(-2i/head_dim) for i in 0..head_dim/2 (https://arxiv.org/abs/2104.09864, section 3.2.2)."""
    return [rotation.theta ** (-i / rotation.head_dim) for i in range(0, rotation.head_dim, 2)]


def linear(rotation: Rotation, scaling: Mapping[str, Any]) -> list[float]:
    """All frequencies divided by ``factor``, which interpolates positions (https://arxiv.org/abs/2306.15595)."""
    return [f / scaling["factor"] for f in plain(rotation, scaling)]


def dynamic(rotation: Rotation, scaling: Mapping[str, Any]) -> list[float]:
    """A base that grows with the length once it is past the trained one ("NTK-aware")."""
    ratio = max(rotation.length, rotation.max_positions) / rotation.max_positions
    stretch = scaling["factor"] * ratio - (scaling["factor"] - 1)
    theta = rotation.theta * stretch ** (rotation.head_dim / (rotation.head_dim - 2))
    return plain(Rotation(rotation.head_dim, theta), scaling)


def by_bands(rotation: Rotation, scaling: Mapping[str, Any]) -> list[float]:
    """Short waves kept, long waves divided by ``factor``, a ramp between (https://arxiv.org/abs/2407.21783)."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    trained = scaling["original_max_position_embeddings"]

    def scaled(frequency: float) -> float:
        turns = trained * frequency / (2 * math.pi)
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        return float(kept * frequency + (1 - kept) * frequency / scaling["factor"])

    return [scaled(f) for f in plain(rotation, scaling)]


BY_BANDS = Rule(by_bands, ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
"""The rule that a family adds under the name its checkpoints use."""

RULES: Mapping[str, Rule] = {
    "default": Rule(plain),
    "linear": Rule(linear, ("factor",)),
    "dynamic": Rule(dynamic, ("factor",), by_length=True),
}
"""Rules by HF's ``rope_type``."""
_KIND = ("rope_type", "type")


def rule_for(scaling: Mapping[str, Any] | None, rules: Mapping[str, Rule] = RULES) -> Rule:
    """The rule that HF's ``rope_scaling`` names under ``rope_type`` or the older ``type``; None means unscaled.

    Raises:
        ConfigError: It is no object, the type or a key is unknown, a key is missing or its value is no positive number.
    """
    if scaling is None or scaling == {}:
        return RULES["default"]
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
