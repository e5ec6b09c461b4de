"""Independent statements of quantization methods in numpy and float64, as their papers and PaddleSlim's layers define them.

x: inputs [tokens, in]; w: weights [in, out].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def gptq(w: Array, gram: Array, scales: Array, damping: float, bits: int = 4) -> Array:
    """Codes by the original recursion over the upper factor of the inverse; ``scales`` [in, out] are fixed before."""
    most = 2 ** (bits - 1) - 1
    rows, h = np.array(w.T, np.float64), np.array(gram, np.float64)
    perm = np.argsort(-np.diag(h), kind="stable")
    rows, h, s = rows[:, perm], h[np.ix_(perm, perm)], scales.T[:, perm]
    h += np.eye(len(h)) * damping * np.diag(h).mean()
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    codes = np.zeros(rows.shape)
    for i in range(len(h)):
        codes[:, i] = np.clip(np.rint(rows[:, i] / s[:, i]), -most - 1, most)
        error = (rows[:, i] - codes[:, i] * s[:, i]) / upper[i, i]
        rows[:, i:] -= np.outer(error, upper[i, i:])
    return codes[:, np.argsort(perm)].T


def smooth_scale(act_max: Array, w: Array, alpha: float = 0.5) -> Array:
    """SmoothQuant's scale of every input."""
    return np.maximum(np.asarray(act_max) ** alpha / np.abs(w).max(1) ** (1 - alpha), 1e-5)


def w8a8_loss(x: Array, w: Array, s: Array) -> float:
    """Squared error of the outputs with 8-bit inputs of one scale, and a scale for each output of the weight."""
    a, b = x / s, w * s[:, None]
    ua, ub = np.abs(a).max(), np.abs(b).max(0)
    a = np.clip(np.rint(a / ua * 127), -128, 127) / 127 * ua
    b = np.clip(np.rint(b / ub * 127), -128, 127) / 127 * ub
    return float((((x @ w) - a @ b) ** 2).mean())


def candidates() -> list[float]:
    """What PieceWiseSearch tries: alpha, then constants."""
    value, out = 0.2, []
    while value <= 5.0:
        if value < 1:
            value += 0.01
            if value >= 0.8:
                value = 1.0
        else:
            value += 0.5
        value = round(value, 2)
        out.append(value)
    return out


def piecewise_scale(x: Array, w: Array, act_max: Array, labels: Sequence[int]) -> Array:
    """PieceWiseSearch; the last of equal losses wins."""
    s, labels = np.ones(len(act_max)), np.asarray(labels)
    for piece in range(int(labels.max()) + 1):
        best = np.inf, s
        for value in candidates():
            trial = s.copy()
            trial[labels == piece] = smooth_scale(act_max, w, value)[labels == piece] if value < 1 else value
            loss = w8a8_loss(x, w, trial)
            if loss <= best[0]:
                best = loss, trial
        s = best[1]
    return s
