"""Options of an engine: defaults and checks that need no model. Neither click nor numpy nor paddle is imported here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmctl.checkpoint.locate import locate
from llmctl.errors import ConfigError, UnsupportedError
from llmctl.io.sizes import parse_bytes_or_share

ENGINES = ("auto", "dynamic", "static", "fused")
WEIGHTS = ("float32", "bfloat16", "float16", "int8", "int4")
KV = ("float16", "float32", "int8")
"""Types of the KV cache."""
SMALL_POSITION = 8192
"""Bytes of the keys and values of one position in float32: a model with fewer keeps them exactly, as their memory does not matter."""


def default_kv(layers: int, kv_heads: int, head_dim: int) -> str:
    """The type of the KV cache where none is asked for: float16, and float32 for a model with few keys and values."""
    return "float32" if 2 * layers * kv_heads * head_dim * 4 < SMALL_POSITION else "float16"


FUSED_ONLY = ("weights", "group", "kv", "cache_memory", "step_tokens", "speculate", "beams", "length_penalty")
"""Options that only the fused engine has."""

BATCH_SIZE = {"dynamic": 8, "static": 8, "fused": 64}
"""Sequences that are computed together by default."""

Folder = str | Path


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a model is run. None means the default, so that an option without effect can be refused.

    Attributes:
        engine: ``fused`` (packed weights, paged KV cache), ``dynamic`` (the family's paddle model), ``static`` (an exported program), or
            ``auto``: what the folder was exported for, else the fused engine if it can run the model, else the layer.
        weights: Type of the packed weights, one of ``WEIGHTS``; None = as exactly as the checkpoint has them.
        group: Inputs that share a scale in int8 and int4 weights: a multiple of 32, or 0 for one scale per output.
        kv: Type of the KV cache, one of ``KV``; None = as ``default_kv`` says.
        cache_memory: Limit of the KV cache: bytes (``2GB``), or a share of the free memory (``0.5``, ``50%``); None = what the
            requests need, up to half of the free memory.
        batch_size: Maximum number of sequences computed together; None = as ``BATCH_SIZE`` says.
        step_tokens: Maximum number of tokens computed in one step, above ``batch_size``; with fewer, running answers wait less for
            long prompts; None = 512.
        speculate: Maximum number of draft tokens per step, looked up in the text so far; None = no speculative decoding.
        beams: Width of beam search; None = no beam search.
        length_penalty: Exponent of the length in a beam's score; None = 1.0.
        adapter: Folder of an adapter for every prompt, or name -> folder of adapters that requests choose among.
        base: If the model folder holds an adapter: its base, where that is not the one that it names.
        allow_other_base: Whether an adapter may be put on a model that it was not trained on.
        no_cache: Whether every step is computed without a KV cache, to check it (dynamic and static).

    Raises:
        ConfigError: A value is out of range.
    """

    engine: str = "auto"
    weights: str | None = None
    group: int | None = None
    kv: str | None = None
    cache_memory: str | int | float | None = None
    batch_size: int | None = None
    step_tokens: int | None = None
    speculate: int | None = None
    beams: int | None = None
    length_penalty: float | None = None
    adapter: Folder | Mapping[str, Folder] | None = None
    base: Folder | None = None
    allow_other_base: bool = False
    no_cache: bool = False

    def __post_init__(self) -> None:
        rules = (
            ("engine", self.engine in ENGINES, _either(ENGINES)),
            ("weights", self.weights in (None, *WEIGHTS), _either(WEIGHTS)),
            ("group", self.group is None or (self.group >= 0 and self.group % 32 == 0), "a multiple of 32, or 0"),
            ("kv", self.kv in (None, *KV), _either(KV)),
            ("batch_size", self.batch_size is None or self.batch_size >= 1, "at least 1"),
            ("step_tokens", self.step_tokens is None or self.step_tokens >= 2, "at least 2"),
            ("speculate", self.speculate is None or self.speculate >= 1, "at least 1"),
            ("beams", self.beams is None or self.beams >= 2, "at least 2"),
            ("length_penalty", math.isfinite(self.length_penalty or 0.0), "a finite number"),
        )
        for name, good, allowed in rules:
            if not good:
                raise ConfigError(f"{self.spell(name, getattr(self, name))} must be {allowed}")
        if self.step_tokens is not None and self.step_tokens <= self.rows("fused"):
            raise ConfigError(
                f"{self.spell('step_tokens', self.step_tokens)} must be above {self.spell('batch_size', self.rows('fused'))}, so "
                "that prompts progress besides answers; raise it, or lower the other"
            )
        if self.cache_memory is not None:
            parse_bytes_or_share(self.cache_memory, f"{self.spell('cache_memory')}: ")
        if self.length_penalty is not None and self.beams is None:
            raise ConfigError(f"{self.spell('length_penalty')} has no effect without {self.spell('beams')}")
        if self.beams is not None and self.speculate is not None:
            raise ConfigError(f"{self.spell('beams')} excludes {self.spell('speculate')}; leave one out")
        if isinstance(self.adapter, Mapping) and "" in self.adapter:
            raise ConfigError(f"{self.spell('adapter')}: the name of {self.adapter['']} is missing")

    def spell(self, name: str, value: object = None) -> str:
        """An option in a message, with its value unless that is None. The command line has a spelling of its own."""
        return name if value is None else f"{name}={value!r}"

    @property
    def single_adapter(self) -> Path | None:
        """The adapter for every prompt."""
        return None if self.adapter is None or isinstance(self.adapter, Mapping) else locate(self.adapter)

    @property
    def named_adapters(self) -> dict[str, Path]:
        """Adapters that requests choose among."""
        named = self.adapter if isinstance(self.adapter, Mapping) else {}
        return {name: locate(folder) for name, folder in named.items()}

    def rows(self, engine: str) -> int:
        """Maximum number of sequences that an engine computes together."""
        return self.batch_size or BATCH_SIZE[engine]

    @property
    def fused_only(self) -> list[str]:
        """What was given that only the fused engine has, as messages spell it."""
        given = [self.spell(name) for name in FUSED_ONLY if getattr(self, name) is not None]
        return given + [self.spell("adapter", self.adapter)] * bool(self.named_adapters)

    def refuse_fused_only(self, engine: str) -> None:
        """Checks that nothing was given that only the fused engine has.

        Raises:
            ConfigError: Names the options that ``engine`` does not have.
        """
        if self.fused_only:
            raise ConfigError(
                f"{', '.join(self.fused_only)} has no effect with {self.spell('engine', engine)}; leave it out, or use "
                f"{self.spell('engine', 'fused')}"
            )

    def refuse_without_fused(self, reason: str) -> None:
        """Checks that nothing was given that needs the fused engine, which cannot run the model.

        Args:
            reason: Why it cannot.

        Raises:
            UnsupportedError: Names the first option that needs it, and the reason.
        """
        needing = [self.spell("engine", self.engine)] * (self.engine == "fused") + self.fused_only
        if needing:
            raise UnsupportedError(f"{needing[0]} needs the fused engine: {reason}")


def _either(values: tuple[str, ...]) -> str:
    return f"{', '.join(values[:-1])} or {values[-1]}"
