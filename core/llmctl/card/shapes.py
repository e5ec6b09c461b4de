"""Symbolic shapes: ``"hidden, heads*head_dim + kv_heads*head_dim"`` as data.

A shape is a comma-separated list of axes; an axis is a sum of terms; a term is a product of symbols and whole numbers.
The order of a term's factors is the memory layout: ``3*heads*head_dim`` is three blocks of heads, ``heads*3*head_dim`` is
three blocks within each head. Sizes, parameter counts and splits are computed from this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

Factor = str | int
CUT_SYMBOLS = ("heads", "kv_heads", "ffn", "vocab")
"""Symbols that tensor parallelism splits (Megatron's convention); ``hidden`` is never split."""


@dataclass(frozen=True)
class Term:
    """A product of factors, outermost first."""

    factors: tuple[Factor, ...]

    def size(self, dims: Mapping[str, Any]) -> int:
        """Number of elements along the axis that this term covers."""
        return prod(_value(factor, dims) for factor in self.factors)


@dataclass(frozen=True)
class Axis:
    """A sum of terms, contiguous in memory."""

    terms: tuple[Term, ...]

    def size(self, dims: Mapping[str, Any]) -> int:
        """Length of the axis."""
        return sum(term.size(dims) for term in self.terms)

    @property
    def symbols(self) -> frozenset[str]:
        """The symbols that occur in the axis."""
        return frozenset(f for term in self.terms for f in term.factors if isinstance(f, str))

    def __str__(self) -> str:
        return " + ".join("*".join(str(f) for f in term.factors) for term in self.terms)


def parse_shape(text: str) -> tuple[Axis, ...]:
    """The axes of a symbolic shape, outermost first.

    Raises:
        ValueError: An axis, term or factor is empty or is neither a name nor a whole number.
    """
    return tuple(_parse_axis(part, text) for part in text.split(","))


def evaluate(expression: str, values: Mapping[str, Any]) -> int:
    """The value of ``a*b/c`` (left to right, no brackets), an integer.

    Raises:
        ValueError: A symbol is unknown or a division leaves a remainder.
    """
    total, pending = 1, "*"
    for token in expression.replace("*", " * ").replace("/", " / ").split():
        if token in "*/":
            pending = token
            continue
        value = _value(_factor(token, expression), values)
        if pending == "*":
            total *= value
        elif value == 0 or total % value:
            raise ValueError(f"{expression}: {total} is not divisible by {token}={value}")
        else:
            total //= value
    return total


def _parse_axis(text: str, shape: str) -> Axis:
    return Axis(tuple(Term(tuple(_factor(f, shape) for f in term.split("*"))) for term in text.split("+")))


def _factor(text: str, where: str) -> Factor:
    text = text.strip()
    if text.isdigit():
        return int(text)
    if not text.isidentifier():
        raise ValueError(f"{where!r}: {text!r} is neither a symbol nor a whole number")
    return text


def _value(factor: Factor, dims: Mapping[str, Any]) -> int:
    if isinstance(factor, int):
        return factor
    if factor not in dims:
        raise ValueError(f"symbol {factor!r} has no value; known: {', '.join(sorted(dims))}")
    return int(dims[factor])
