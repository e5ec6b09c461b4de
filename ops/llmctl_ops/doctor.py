"""What this machine makes of each operator: the path it takes, why, and whether the compiled one computes what its twin does."""

from __future__ import annotations

from dataclasses import dataclass

from llmctl_ops import library
from llmctl_ops.registry import OPS, TOLERANCE, Op


@dataclass(frozen=True)
class Finding:
    """One operator.

    Args:
        op: Its name.
        path: ``avx512``, ``avx2``, ``portable`` or ``reference``.
        why: Why this path.
        error: Largest difference from the twin, as a part of the largest value or of 1; None = nothing to compare.
        problem: What is wrong; empty = nothing.
    """

    op: str
    path: str
    why: str
    error: float | None
    problem: str


def examine() -> list[Finding]:
    """A finding for each operator."""
    return [_examine(op) for op in OPS]


def _examine(op: Op) -> Finding:
    found = library.load()
    if found.handle is None:
        return Finding(op.name, found.level, found.why, None, "")
    try:
        error = op.compare()
    except Exception as failure:  # whatever it is, it is this operator's finding
        return Finding(op.name, found.level, found.why, None, f"{type(failure).__name__}: {failure}")
    # Written so that a difference that is not a number fails.
    problem = (
        "" if error <= TOLERANCE else f"differs by {error:.2g}, more than {TOLERANCE:.0e}: set LLMCTL_OPS=reference"
    )
    return Finding(op.name, found.level, found.why, error, problem)
