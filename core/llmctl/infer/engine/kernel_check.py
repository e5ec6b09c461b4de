"""How far compiled matrix products and sampling are here from numpy's, for ``llmctl ops doctor``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llmctl.infer.executors import native
from llmctl.infer.packed import linear
from llmctl.infer.packed.linear import Float
from llmctl.infer.sampling.reference import choose_one
from llmctl.infer.sampling.rows import SamplerInput

VOCAB = 1001
"""V of the logits that tokens are chosen from."""


def linear_difference() -> float:
    """The largest difference of a product, relative to the largest value or to 1: all types of weights, one row and several."""
    x_TI, weight_IO, bias_O = _noise(7, 100), _noise(100, 37), _noise(37)
    errors = []
    for kind, group in (("float32", 0), ("bfloat16", 0), ("int8", 0), ("int8", 32), ("int4", 64)):
        packed = linear.pack(weight_IO, kind, group)
        rounded_TI = linear.rounded(x_TI) if kind in linear.LIMITS else x_TI
        theirs_TO = rounded_TI.astype(np.float64) @ linear.unpack(packed) + bias_O
        for rows in (1, 7):
            apart = np.abs(native.product(x_TI[:rows], packed, bias_O) - theirs_TO[:rows]).max()
            errors.append(apart / max(1.0, np.abs(theirs_TO).max()))
    return float(np.max(errors))


def sampling_difference(choose: Callable[[Float, Sequence[SamplerInput], bool], Any] | None = None) -> float:
    """The largest difference of a log-probability from numpy's; infinite where a token or status differs.

    Args:
        choose: From logits, sampler inputs and whether log-probabilities are requested to tokens, log-probabilities and statuses;
            None = the kernels of this processor.
    """
    choose = choose or native.sampler(VOCAB).choose
    said = np.arange(0, 700, 3, dtype=np.int32)
    forms = (
        SamplerInput(),
        SamplerInput(context=said, generated=50, repetition=1.3, presence=0.2, frequency=0.1),
        SamplerInput(sample=True, temperature=0.7, top_k=40, excluded=said[:3]),
        SamplerInput(sample=True, top_p=0.8, min_p=0.01),
    )
    rows = [replace(form, draw=draw) for form in forms for draw in (0.1, 0.5, 0.9)]
    logits_LV = _noise(len(rows), VOCAB)
    token_L, logprob_L, status_L = choose(logits_LV, rows, True)
    right = np.array([choose_one(logits_V, row, True) for logits_V, row in zip(logits_LV, rows, strict=True)])
    if (token_L != right[:, 0]).any() or (status_L != right[:, 2]).any():
        return float("inf")
    return float(np.abs(logprob_L - right[:, 1]).max())


def _noise(*shape: int) -> Float:
    """Values around 0 that are the same each time."""
    index = np.arange(np.prod(shape), dtype=np.float64)
    return (2 * np.sin(12.9898 * index + 78.233 * (index % 7))).astype(np.float32).reshape(shape)
