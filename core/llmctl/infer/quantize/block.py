"""One layer of a decoder in numpy and float32, part by part, so that the inputs of every linear can be seen.

It computes what the executors compute; weights are matrices, not packed. Shape suffixes: T tokens of a chunk of whole windows,
D hidden, N query heads, K key-value heads, G query heads of a key-value head, H head_dim, S tokens of a window, I inputs, O outputs,
E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.infer.executors.reference import apply_rope, norm, softmax
from llmctl.infer.packed.linear import parts_of, rounded, unpack, unpack_codes
from llmctl.infer.packed.model import Layer, Linear, Norm

Array = NDArray[Any]

CODED = ("int8", "int4")
"""Kinds whose kernels round rows."""

ONE_THREAD, LEAST_ROWS = 1 << 18, 16
"""Multiplications of a matrix product up to which OpenBLAS uses one thread: several threads of a small product wait for each other,
ten times as long as they compute on a busy machine. And the rows of a product, at least.
"""


@dataclass(frozen=True)
class Matrix:
    """A weight [I, O], its bias [O], factors [I] of its inputs, and whether it is of integer codes."""

    weight: Array
    bias: Array | None = None
    factors: Array | None = None
    coded: bool = False

    def __call__(self, x_TI: Array, rounds_T: NDArray[np.bool_] | None = None) -> Array:
        """(x f) W + b; before integer codes the rows of ``rounds_T`` are rounded to 8 bits, as kernels round them."""
        x_TI = self.seen(x_TI)
        if self.coded and rounds_T is not None and rounds_T.any():
            x_TI = x_TI.copy()
            x_TI[rounds_T] = rounded(x_TI[rounds_T])
        y_TO = x_TI @ self.weight
        return y_TO if self.bias is None else y_TO + self.bias

    def seen(self, x_TI: Array) -> Array:
        """The inputs as the weight meets them."""
        return x_TI if self.factors is None else x_TI * self.factors


@dataclass(frozen=True)
class Block:
    """A layer; fields as those of ``packed.model.Layer``."""

    norm: Norm
    qkv: Matrix
    out: Matrix
    ffn_norm: Norm
    up: tuple[Matrix, ...]
    down: tuple[Matrix, ...]
    router: Array | None = None
    q_norm: Array | None = None
    k_norm: Array | None = None


@dataclass(frozen=True)
class Chunk:
    """Tokens of whole windows that are computed together.

    Attributes:
        rows: Where they are among all tokens.
        position_T: Position ids.
        second_position_T: Position ids of the second half of 2-D RoPE.
        windows: For each window its tokens within the chunk.
        begin_T: First token of its window that each token attends to.
        end_T: The token after the last.
        rounds_T: Tokens of windows that show what the engine computes: their rows are rounded as the kernels do.
    """

    rows: slice
    position_T: Array
    second_position_T: Array | None
    windows: Sequence[slice]
    begin_T: Array
    end_T: Array
    rounds_T: NDArray[np.bool_]


def matrix(linear: Linear) -> Matrix:
    """A packed linear, unpacked."""
    parts = parts_of(linear.weight)
    factors, coded = parts[0].factors, parts[0].kind in CODED
    if any(part.order is not None or not np.array_equal(part.factors, factors) for part in parts):
        return Matrix(unpack(linear.weight), linear.bias, coded=coded)
    return Matrix(unpack_codes(linear.weight), linear.bias, factors, coded)


def block_of(layer: Layer) -> Block:
    """A packed layer, unpacked."""
    return Block(
        layer.norm, matrix(layer.qkv), matrix(layer.out), layer.ffn_norm, tuple(map(matrix, layer.up)),
        tuple(map(matrix, layer.down)), layer.router, layer.q_norm, layer.k_norm,
    )  # fmt: skip


def sublayer_inputs(graph: DecoderSpec, weights: Norm, x_TD: Array) -> Array:
    """What attention or the feed-forward layer reads of the residual [T, D]."""
    return x_TD if graph.norm_after else normed(graph, weights, x_TD)


def add(graph: DecoderSpec, weights: Norm, x_TD: Array, inner_TD: Array, y_TD: Array) -> Array:
    """The residual after a sublayer that made y of ``inner``."""
    residual = inner_TD if graph.residual_after_norm else x_TD
    sum_TD = residual * np.float32(graph.residual_scale) + y_TD
    return normed(graph, weights, sum_TD) if graph.norm_after else sum_TD


def normed(graph: DecoderSpec, weights: Norm | None, x_TD: Array) -> Array:
    """The norm of rows; None = there is no norm."""
    return x_TD if weights is None else norm(graph, weights, x_TD).astype(np.float32)


def attend(graph: DecoderSpec, index: int, block: Block, qkv_TO: Array, chunk: Chunk) -> Array:
    """What ``out`` reads [T, N*H]."""
    heads_TNH = qkv_TO.reshape(len(qkv_TO), -1, graph.head_dim)
    q, k, v = np.split(heads_TNH, [graph.heads, graph.heads + graph.kv_heads], axis=1)
    if block.q_norm is not None and block.k_norm is not None:
        q, k = (norm(replace(graph, norm="rmsnorm"), Norm(w), x) for w, x in ((block.q_norm, q), (block.k_norm, k)))
    q, k = (apply_rope(graph, x, chunk).astype(np.float32) for x in (q, k))  # type: ignore[arg-type]
    q = q * np.float32(graph.score_scales[index] if graph.score_scales else graph.head_dim**-0.5)
    if graph.rope and graph.rope.log_base:
        counted = np.maximum(chunk.position_T + 1, graph.rope.log_base)
        q = q * (np.log(counted) / math.log(graph.rope.log_base)).astype(np.float32)[:, None, None]
    mixed = np.empty((len(q), graph.heads * graph.head_dim), np.float32)
    for window in chunk.windows:
        mixed[window] = _window(graph, q[window], k[window], v[window], chunk.begin_T[window], chunk.end_T[window])
    return mixed


def _window(graph: DecoderSpec, q_SNH: Array, k_SKH: Array, v_SKH: Array, begin_S: Array, end_S: Array) -> Array:
    tokens = len(q_SNH)
    q_KGSH = q_SNH.reshape(tokens, graph.kv_heads, -1, graph.head_dim).transpose(1, 2, 0, 3)
    k_KHS = np.ascontiguousarray(k_SKH.transpose(1, 2, 0))[:, None]
    v_KSH = np.ascontiguousarray(v_SKH.transpose(1, 0, 2))[:, None]
    key_S = np.arange(tokens)
    biases = (
        0
        if not graph.slopes
        else np.asarray(graph.slopes, np.float32).reshape(graph.kv_heads, -1, 1, 1) * key_S.astype(np.float32)
    )
    hidden_SS = (key_S < begin_S[:, None]) | (key_S >= end_S[:, None])
    mixed_SKGH = np.empty((tokens, *q_KGSH.shape[:2], graph.head_dim), np.float32)
    rows = max(LEAST_ROWS, ONE_THREAD // (tokens * graph.head_dim))
    for start in range(0, tokens, rows):
        part = slice(start, start + rows)
        scores_KGRS = q_KGSH[:, :, part] @ k_KHS + biases
        weights_KGRS = softmax(np.where(hidden_SS[part], np.float32(-np.inf), scores_KGRS))
        mixed_SKGH[part] = (weights_KGRS @ v_KSH).transpose(2, 0, 1, 3)
    return mixed_SKGH.reshape(tokens, -1)


def route(graph: DecoderSpec, router_ED: Array, x_TD: Array) -> tuple[Array, Array]:
    """Weights [T, E] of the experts of each token, zeros for the others, and whether each was chosen [T, E]."""
    routing = graph.experts
    assert routing is not None, "a router belongs to a mixture of experts"
    weight_TE = softmax(x_TD @ router_ED.T)
    first_TC = np.argsort(-weight_TE, axis=1, kind="stable")[:, : routing.top_k]
    chosen_TE = np.zeros(weight_TE.shape, bool)
    np.put_along_axis(chosen_TE, first_TC, True, axis=1)
    weight_TE = np.where(chosen_TE, weight_TE, np.float32(0))
    if routing.renormalize:
        weight_TE = weight_TE / weight_TE.sum(axis=1, keepdims=True)
    return weight_TE.astype(np.float32), chosen_TE


def activate(graph: DecoderSpec, up_TO: Array) -> Array:
    """What ``down`` reads."""
    return ACTIVATIONS[graph.activation](up_TO)


def _swiglu(up: Array) -> Array:
    gate, up = np.split(up, 2, axis=-1)
    with np.errstate(over="ignore"):
        active = np.exp(-gate)
    active += 1
    np.divide(gate, active, out=active)
    active *= up
    return active


def _gelu(up: Array) -> Array:
    """By the approximation of erf in Abramowitz and Stegun, 7.1.26, whose error is below 1.5e-7."""
    x = np.abs(up) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * x)
    series = np.float32(1.061405429)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = series * t + np.float32(factor)
    erf = np.sign(up) * (1 - series * t * np.exp(-x * x))
    return np.asarray(up / 2 * (1 + erf))


def _gelu_tanh(up: Array) -> Array:
    inner = np.float32(math.sqrt(2 / math.pi)) * (up + np.float32(0.044715) * up**3)
    return np.asarray(up / 2 * (1 + np.tanh(inner)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "swiglu": _swiglu,
    "gelu": _gelu,
    "gelu-tanh": _gelu_tanh,
    "relu": lambda up: np.maximum(up, 0),
}
