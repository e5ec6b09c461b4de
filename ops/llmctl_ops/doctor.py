"""What this machine makes of each operator: the path it takes, why, and whether the compiled one computes what its twin does."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import paddle

from llmctl_ops import cuda, library
from llmctl_ops.registry import OPS, TOLERANCE, Op
from llmctl_ops.sampling import Choice, Chosen

Choose = Callable[[np.ndarray, Sequence[Choice], bool], Chosen]
"""Tokens from logits [L, V], choices, and whether log-probabilities are wanted."""


@dataclass(frozen=True)
class Finding:
    """One operator.

    Args:
        op: Its name; ``cuda`` for the kernels for GPUs.
        path: ``avx512vnni``, ``avx512``, ``avx2``, ``portable`` or ``reference``; ``cuda`` for the kernels for GPUs.
        why: Why this path.
        error: Largest difference from the twin, as a part of the largest value or of 1; None = nothing to compare.
        problem: What is wrong; empty = nothing.
    """

    op: str
    path: str
    why: str
    error: float | None
    problem: str


def examine(more: Sequence[Op] = (), sampling: Callable[[Choose], float] | None = None) -> list[Finding]:
    """A finding for each operator, and one for the kernels for GPUs if they were built.

    Args:
        more: What else is made of the library and to be compared.
        sampling: How far choosing tokens is from its twin; None = kernels for GPUs are not compared.
    """
    found = [_examine(op) for op in (*OPS, *more)]
    return [*found, _examine_cuda(sampling)] if cuda.FILE.exists() else found


def _examine(op: Op) -> Finding:
    found = library.load()
    if found.handle is None:
        return Finding(op.name, found.level, found.why, None, "")
    return _compared(op.name, found.level, found.why, op.compare, "set LLMCTL_OPS=reference")


def _examine_cuda(sampling: Callable[[Choose], float] | None) -> Finding:
    name = cuda.FILE.name
    if cuda.load() is None:
        try:
            ctypes.CDLL(str(cuda.FILE))
            why = f"{name} has other functions than are needed"
        except OSError as error:
            why = f"{name} cannot be loaded ({error})"
        return Finding("cuda", "reference", f"{why}; reinstall llmctl-ops", None, "")
    if not paddle.is_compiled_with_cuda() or not paddle.device.cuda.device_count():
        return Finding("cuda", "cuda", f"{name} was built; there is no GPU here, or none that paddle can use", None, "")
    why = f"{name} for tensors on GPUs"
    if sampling is None:
        return Finding("cuda", "cuda", why, None, "")

    def choose(logits_LV: np.ndarray, choices: Sequence[Choice], logprobs: bool) -> Chosen:
        return cuda.choose(paddle.to_tensor(logits_LV, place=paddle.CUDAPlace(0)), choices, logprobs)

    return _compared("cuda", "cuda", why, lambda: sampling(choose), f"remove {cuda.FILE}")


def _compared(name: str, path: str, why: str, compare: Callable[[], float], remedy: str) -> Finding:
    try:
        error = compare()
    except Exception as failure:  # whatever it is, it is this operator's finding
        return Finding(name, path, why, None, f"{type(failure).__name__}: {failure}")
    # Written so that a difference that is not a number fails.
    problem = "" if error <= TOLERANCE else f"differs by {error:.2g}, more than {TOLERANCE:.0e}: {remedy}"
    return Finding(name, path, why, error, problem)
