"""The hyperparameters of a model, as Hugging Face's ``config`` holds them, and which of them conflict.

Single values are checked as they are read, in ``config_fields.py``. Nothing here imports paddle or numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

from llmctl.card import slots
from llmctl.errors import ConfigError


class Dims(Mapping[str, Any]):
    """The hyperparameters of a model by name, readable as attributes. Immutable and hashable."""

    __slots__ = ("_values",)
    _values: dict[str, Any]

    def __init__(self, **values: Any) -> None:
        object.__setattr__(self, "_values", values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"dims have no {name!r}; they have {', '.join(self._values)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("dims are immutable; use replace()")

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_dims, (self._values,)

    def __hash__(self) -> int:
        return hash(repr(sorted(self._values.items())))

    def __repr__(self) -> str:
        return f"Dims({', '.join(f'{k}={v!r}' for k, v in self._values.items())})"

    def replace(self, **changes: Any) -> Dims:
        """A copy with some values changed."""
        return Dims(**{**self._values, **changes})


def _make_dims(values: dict[str, Any]) -> Dims:
    return Dims(**values)


def check_together(values: Mapping[str, Any], position: str, where: str) -> None:
    """Checks head counts, experts per token and the width of rotated heads against each other.

    Args:
        values: Values by name; those that the family does not have are skipped.
        position: The family's position encoding, one of ``slots.POSITIONS``.
        where: The file, for messages.

    Raises:
        ConfigError: They conflict.
    """
    heads, kv_heads = values.get("heads", 1), values.get("kv_heads", 1)
    if heads % kv_heads:
        raise ConfigError(
            f"{where}: {heads} query heads cannot share {kv_heads} key-value heads; the number must divide them"
        )
    if values.get("top_k", 0) > values.get("experts", inf):
        raise ConfigError(f"{where}: a token cannot be routed to {values['top_k']} of {values['experts']} experts")
    width, unit = values.get("head_dim", 0), slots.HEAD_DIM_MULTIPLE.get(position, 1)
    if width % unit and values.get("position") != "alibi":
        raise ConfigError(
            f"{where}: a head of width {width} cannot be rotated in pairs; its width must be a multiple of {unit}"
        )
