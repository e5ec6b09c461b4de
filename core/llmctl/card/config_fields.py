"""The fields of ``config.json`` that a card reads: names, keys, defaults and the values that the family supports.

Nothing here imports paddle or numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from llmctl.card.shapes import evaluate
from llmctl.errors import ConfigError


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = _Required()
"""Default of a field that ``config.json`` must have."""

COUNTS = frozenset({"top_k", "window", "max_positions", "trained"})
"""Fields that are whole numbers although no shape uses them."""

ABOVE_ZERO = frozenset({"norm_eps", "rope_theta"})
"""Fields that must be above 0."""

DROPOUT = "dropout"
"""Suffix of the names of dropout rates."""


@dataclass(frozen=True)
class ConfigField:
    """A field of ``config.json``: its name here, its key there, and its value where the key is absent.

    Attributes:
        name: Name in ``Dims``; a symbol of shapes if it is a whole number.
        key: Key in HF's config.json; ``""`` for a value that is only derived.
        default: Value where the key is absent; ``REQUIRED`` makes that an error.
        derive: Instead of ``default``, where the key is absent or null: an expression over the fields before this one, such
            as ``"hidden/heads"``, or a function of the content of config.json.
        allowed: The values that the family supports; any other is an error. ``()`` = any.
        check: Raises ConfigError for a value that the family does not support.
        recorded: Whether the config.json of a saved model gets the key although its value was derived, because the source
            of the derivation (such as the vocabulary's size) may change.
        aliases: Other keys of the same value, such as PaddleNLP's; they are read where ``key`` is absent or null.
    """

    name: str
    key: str
    default: Any = REQUIRED
    derive: str | Callable[[Mapping[str, Any]], Any] = field(default="", repr=False)
    allowed: tuple[Any, ...] = ()
    check: Callable[[Any], object] | None = field(default=None, repr=False, compare=False)
    recorded: bool = field(default=False, repr=False)
    aliases: tuple[str, ...] = field(default=(), repr=False)

    def read(
        self, config: Mapping[str, Any], known: Mapping[str, Any], symbols: frozenset[str], family: str, where: str
    ) -> Any:
        """The value in a config.json, or its default where it is absent or null.

        Args:
            config: Content of the file.
            known: Values of the fields before this one.
            symbols: Names of the fields that sizes are computed from.
            family: Name of the family, for messages.
            where: The file, for messages.

        Raises:
            ConfigError: It is required and absent, not supported, or of the wrong type.
        """
        keys = (self.key, *self.aliases) if self.key else ()
        value = next((config[key] for key in keys if config.get(key) is not None), None)
        if value is None:
            value = self._absent(config, known, family, where)
            if value is None or not self.derive:
                return value
        if self.allowed and value not in self.allowed:
            allowed = ", ".join(repr(v) for v in self.allowed)
            raise ConfigError(f"{where}: {self._shown(value)} is not supported by {family}; supported: {allowed}")
        try:
            if self.check:
                self.check(value)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        except (TypeError, AttributeError, ValueError, ArithmeticError, LookupError) as error:
            raise ConfigError(f"{where}: {self._shown(value)} is of the wrong kind: {error}") from error
        if problem := self._wrong_kind(value, symbols):
            raise ConfigError(f"{where}: {self._shown(value)} must be {problem}")
        return value

    def _absent(self, config: Mapping[str, Any], known: Mapping[str, Any], family: str, where: str) -> Any:
        if self.derive:
            try:
                return evaluate(self.derive, known) if isinstance(self.derive, str) else self.derive(config)
            except (ValueError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
                raise ConfigError(f"{where}: {self.key or self.name}: {error}") from error
        if self.default is REQUIRED:
            raise ConfigError(f"{where} has no {self.key!r}, which the family {family} needs")
        return self.default

    def _wrong_kind(self, value: Any, symbols: frozenset[str]) -> str:
        """Empty for a valid value, else what is valid. Sizes are counts; other values are of their default's type."""
        number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
        if self.name in COUNTS or self.name in symbols:
            return "" if number and isinstance(value, int) and value > 0 else "a whole number above 0"
        if self.name in ABOVE_ZERO:
            return "" if number and value > 0 else "a number above 0"
        if self.name.endswith(DROPOUT):
            return "" if number and 0 <= value < 1 else "a number from 0 to below 1"
        if isinstance(self.default, bool):
            return "" if isinstance(value, bool) else "true or false"
        if isinstance(self.default, int | float):
            return "" if number and value >= 0 else "a number, 0 or above"
        return ""

    def _shown(self, value: Any) -> str:
        return f"{self.key or self.name}={value!r}"


HF_DECODER = (
    ConfigField("layers", "num_hidden_layers"),
    ConfigField("hidden", "hidden_size"),
    ConfigField("heads", "num_attention_heads"),
    ConfigField("kv_heads", "num_key_value_heads", derive="heads"),
    ConfigField("head_dim", "head_dim", derive="hidden/heads"),
    ConfigField("ffn", "intermediate_size"),
    ConfigField("vocab", "vocab_size"),
    ConfigField("max_positions", "max_position_embeddings", 2048),
    ConfigField("tied", "tie_word_embeddings", False),
    ConfigField("init_std", "initializer_range", 0.02),
)
"""The fields of most decoder families, in Hugging Face's spelling; a card lists these first, then its own."""

Setting = ConfigField
"""Older name of ``ConfigField``."""
