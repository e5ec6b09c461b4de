"""RoPE frequencies and their scaling rules, in plain Python floats.

No paddle here, so that a configuration can be checked early; ``nn/rotary.py`` applies the params.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmctl.errors import ConfigError


@dataclass(frozen=True)
class RopeParams:
    """What the frequencies depend on.

    Attributes:
        head_dim: Elements of a head that are rotated.
        theta: Base of the frequencies.
        max_positions: ``max_position_embeddings``, in most checkpoints the trained length.
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
        keys: Keys that it needs there: numbers above 0.
        by_length: Whether the frequencies depend on the length of the sequence.
        optional: Further keys that it reads: numbers, 0 or above, or null.
        lists: Keys of lists with a number above 0 for each pair.
        flags: Keys that are true or false.
        attention_factor: Factor of cosines and sines, from the same arguments as ``apply``; None = 1.
        stable: Longest sequence with the same frequencies, from the same arguments, if ``by_length``; None = ``max_positions``.
    """

    apply: Callable[[RopeParams, Mapping[str, Any]], list[float]]
    keys: tuple[str, ...] = ()
    by_length: bool = False
    optional: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    attention_factor: Callable[[RopeParams, Mapping[str, Any]], float] | None = None
    stable: Callable[[RopeParams, Mapping[str, Any]], int] | None = None

    def factor(self, params: RopeParams, scaling: Mapping[str, Any]) -> float:
        """Factor of cosines and sines."""
        return self.attention_factor(params, scaling) if self.attention_factor else 1.0

    def stable_length(self, params: RopeParams, scaling: Mapping[str, Any]) -> int:
        """Longest sequence with the same frequencies."""
        return self.stable(params, scaling) if self.stable else params.max_positions


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


TRAINED = "original_max_position_embeddings"


def trained_length(params: RopeParams, scaling: Mapping[str, Any]) -> int:
    """The trained length of a model whose ``max_position_embeddings`` may be that of the extended context."""
    return int(scaling.get(TRAINED) or params.max_positions)


def extension(params: RopeParams, scaling: Mapping[str, Any]) -> float:
    """``factor``, or how much longer ``max_position_embeddings`` is than the trained length."""
    return float(scaling.get("factor") or params.max_positions / trained_length(params, scaling))


def yarn(params: RopeParams, scaling: Mapping[str, Any]) -> list[float]:
    """High frequencies kept, low ones divided by ``factor``, a ramp over the pairs between (https://arxiv.org/abs/2309.00071)."""
    trained, factor = trained_length(params, scaling), extension(params, scaling)

    def pair_of(rotations: float) -> float:
        """The pair that makes this many rotations within the trained length."""
        return params.head_dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(params.theta))

    low, high = pair_of(scaling.get("beta_fast") or 32), pair_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, params.head_dim - 1)
    width = high - low or 0.001
    frequencies = rope_frequencies(params, {})
    ramp = (min(max((pair - low) / width, 0.0), 1.0) for pair in range(len(frequencies)))
    return [f * (1 - r) + f / factor * r for f, r in zip(frequencies, ramp, strict=True)]


def yarn_factor(params: RopeParams, scaling: Mapping[str, Any]) -> float:
    """YaRN's factor of cosines and sines: ``attention_factor``, or 0.1 ln(factor) + 1, with DeepSeek's ``mscale`` a ratio of two."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    factor = extension(params, scaling)

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    weights = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return temperature(weights[0]) / temperature(weights[1]) if weights[0] and weights[1] else temperature(1)


def longrope(params: RopeParams, scaling: Mapping[str, Any]) -> list[float]:
    """Each frequency divided by its own factor: one list up to the trained length, another beyond (https://arxiv.org/abs/2402.13753)."""
    divisors = scaling["long_factor" if params.length > trained_length(params, scaling) else "short_factor"]
    frequencies = rope_frequencies(params, {})
    if len(divisors) != len(frequencies):
        raise ConfigError(
            f"rope_scaling of type 'longrope': short_factor and long_factor must have {len(frequencies)} numbers, one for "
            f"each pair, not {len(divisors)}"
        )
    return [f / divisor for f, divisor in zip(frequencies, divisors, strict=True)]


def longrope_factor(params: RopeParams, scaling: Mapping[str, Any]) -> float:
    """LongRoPE's factor of cosines and sines: ``attention_factor``, or sqrt(1 + ln(factor) / ln(trained length))."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    factor = extension(params, scaling)
    return math.sqrt(1 + math.log(factor) / math.log(trained_length(params, scaling))) if factor > 1 else 1.0


ROPE_BY_WAVELENGTH = RopeRule(
    by_wavelength, ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
)
"""A rule that families add to ``ROPE_RULES`` under the ``rope_type`` of their checkpoints."""

ROPE_RULES: Mapping[str, RopeRule] = {
    "default": RopeRule(rope_frequencies),
    "linear": RopeRule(linear, ("factor",)),
    "dynamic": RopeRule(dynamic_ntk, ("factor",), by_length=True),
    "yarn": RopeRule(
        yarn,
        optional=("factor", TRAINED, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
        flags=("truncate",),
        attention_factor=yarn_factor,
    ),
    "longrope": RopeRule(
        longrope,
        by_length=True,
        optional=("factor", TRAINED, "attention_factor"),
        lists=("short_factor", "long_factor"),
        attention_factor=longrope_factor,
        stable=trained_length,
    ),
}
"""Rules by HF's ``rope_type``, with its formulas (``transformers/modeling_rope_utils.py``)."""
_KIND = ("rope_type", "type")


def rope_rule(scaling: Mapping[str, Any] | None, rules: Mapping[str, RopeRule] = ROPE_RULES) -> RopeRule:
    """The rule for the ``rope_type`` (formerly ``type``) of HF's ``rope_scaling``; None means unscaled.

    Raises:
        ConfigError: It is not an object, the type or a key is unknown, a key is missing or its value is of the wrong kind.
    """
    if scaling is None or scaling == {}:
        return ROPE_RULES["default"]
    if not isinstance(scaling, Mapping):
        raise ConfigError(f"rope_scaling={scaling!r} is not an object with a rope_type")
    name = scaling.get("rope_type", scaling.get("type"))
    if name not in rules:
        raise ConfigError(f"rope_scaling: type {name!r} is not supported; supported: {', '.join(rules)}")
    rule = rules[name]
    known = (*_KIND, *rule.keys, *rule.optional, *rule.lists, *rule.flags)
    if unread := sorted(key for key, value in scaling.items() if value is not None and key not in known):
        raise ConfigError(f"rope_scaling of type {name!r} does not know {', '.join(unread)}; it would be ignored")
    for key, problem in _wrong_values(rule, scaling):
        raise ConfigError(f"rope_scaling of type {name!r}: {key}={scaling.get(key)!r} must be {problem}")
    return rule


def _wrong_values(rule: RopeRule, scaling: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys with a wrong value, and what it must be."""
    for key in rule.keys:
        if not _above_zero(scaling.get(key)):
            yield key, "a number above 0"
    for key in rule.optional:
        if scaling.get(key) not in (None, 0) and not _above_zero(scaling[key]):
            yield key, "a number, 0 or above, or null"
    if "factor" in rule.optional and not rule.lists and not (scaling.get("factor") or scaling.get(TRAINED)):
        yield "factor", f"a number above 0, or {TRAINED} must be there"
    for key in rule.lists:
        values = scaling.get(key)
        if not isinstance(values, list | tuple) or not values or not all(map(_above_zero, values)):
            yield key, "a list of numbers above 0"
    for key in rule.flags:
        if not isinstance(scaling.get(key, True), bool):
            yield key, "true or false"


def _above_zero(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def context_length(dims: Mapping[str, Any]) -> int:
    """Longest sequence that the positions of a model hold, in tokens; 0 = any.

    With YaRN it is ``factor`` times the trained length, also where ``max_position_embeddings`` is the trained length.
    """
    longest, scaling = int(dims.get("max_positions") or 0), dims.get("rope_scaling") or {}
    if longest and scaling.get("rope_type", scaling.get("type")) == "yarn":
        params = RopeParams(0, 1.0, longest)
        return max(longest, int(extension(params, scaling) * trained_length(params, scaling)))
    return longest
