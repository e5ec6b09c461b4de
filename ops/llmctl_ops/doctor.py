"""Diagnosis of this machine: the path that each operator takes, why, and how far its kernels are from the reference."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import paddle

from llmctl_ops import cuda, library
from llmctl_ops.registry import OPS, TOLERANCE, Op
from llmctl_ops.sampling import SamplerInput, SamplerOutput

Choose = Callable[[np.ndarray, Sequence[SamplerInput], bool], SamplerOutput]
"""(logits [L, V], inputs, whether to compute log-probabilities) -> tokens, log-probabilities and statuses."""


@dataclass(frozen=True)
class Finding:
    """The diagnosis of one operator.

    Args:
        op: Its name; ``cuda`` for the CUDA kernels.
        path: ``avx512vnni``, ``avx512``, ``avx2``, ``portable`` or ``reference``; ``cuda`` for the CUDA kernels.
        why: Why this path.
        error: Largest difference from the reference, relative to the largest value or to 1; None = not compared.
        problem: What is wrong; empty = nothing.
    """

    op: str
    path: str
    why: str
    error: float | None
    problem: str


def examine(more: Sequence[Op] = (), sampling: Callable[[Choose], float] | None = None) -> list[Finding]:
    """A finding for each operator, and one for the CUDA kernels if they were built.

    Args:
        more: Other parts of the library to compare.
        sampling: The difference of a sampler from its reference; None = CUDA kernels are not compared.
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
            why = f"{name} is of another version"
        except OSError as error:
            why = f"{name} cannot be loaded ({error})"
        return Finding("cuda", "reference", f"{why}; reinstall paddle-llmctl-ops", None, "")
    if not paddle.is_compiled_with_cuda() or not paddle.device.cuda.device_count():
        return Finding("cuda", "cuda", f"{name} was built, but paddle finds no GPU", None, "")
    why = f"{name} for tensors on GPUs"
    if sampling is None:
        return Finding("cuda", "cuda", why, None, "")

    def choose(logits_LV: np.ndarray, inputs: Sequence[SamplerInput], logprobs: bool) -> SamplerOutput:
        return cuda.choose(paddle.to_tensor(logits_LV, place=paddle.CUDAPlace(0)), inputs, logprobs)

    return _compared("cuda", "cuda", why, lambda: sampling(choose), f"remove {cuda.FILE}")


def _compared(name: str, path: str, why: str, compare: Callable[[], float], remedy: str) -> Finding:
    try:
        error = compare()
    except Exception as failure:  # any failure is a finding of this operator
        return Finding(name, path, why, None, f"{type(failure).__name__}: {failure}")
    # The comparison is false for NaN, which is a problem too.
    problem = "" if error <= TOLERANCE else f"differs by {error:.2g}, more than {TOLERANCE:.0e}: {remedy}"
    return Finding(name, path, why, error, problem)
