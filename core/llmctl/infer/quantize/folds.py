"""Scales and offsets of the inputs of a stage as exact rewrites of a layer: the float model computes what it did.

A stage is the linears that read the same inputs. Its inputs become (x - offset) / scale: by the norm before it, by the values of
attention before ``out``, by the up projection before ``down``; its weights and biases make that good. Shape suffixes: I inputs of a
stage, O outputs, K key-value heads, G query heads of a key-value head, H head_dim, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.infer.packed.model import Norm
from llmctl.infer.quantize.block import Block, Matrix

Array = NDArray[Any]

STAGES = ("qkv", "out", "up", "down")
"""Stages of a layer, in the order in which they compute."""

BEFORE = {"qkv": "the norm before attention", "out": "the values of attention", "up": "the norm before the feed-forward layer",
          "down": "the up projection"}  # fmt: skip
"""Stage -> what its scales become part of."""


@dataclass(frozen=True)
class Fold:
    """What the inputs of a stage become: (x - offset) / scale.

    Attributes:
        scale_I: float32, above 0.
        offset_I: float32; None = all are 0.
    """

    scale_I: Array
    offset_I: Array | None = None

    def apply_to(self, x_TI: Array) -> None:
        """Scales inputs in place."""
        if self.offset_I is not None:
            x_TI -= self.offset_I
        x_TI /= self.scale_I


def no_scale(graph: DecoderSpec, stage: str) -> str:
    """Why inputs of a stage have no scales that the model before can take; empty = they can have them."""
    if stage in ("qkv", "up"):
        if graph.norm_after:
            return "the output of the norm is the residual"
        if graph.residual_after_norm:
            return "the residual takes the output of the norm"
    if stage == "down" and graph.activation not in ("swiglu", "relu"):
        return f"{graph.activation} of a scaled input is not the scaled {graph.activation}"
    return ""


def no_offset(graph: DecoderSpec, stage: str) -> str:
    """Why inputs of a stage have no offsets; empty = they can have them."""
    if stage == "down":
        return "the activation has no bias"
    if stage == "up" and graph.experts is not None:
        return "the router reads the same inputs and has no bias"
    return no_scale(graph, stage)


def pooled(graph: DecoderSpec, stage: str) -> Array:
    """For each input of a stage the number of the scale that it shares: query heads share those of their key-value head."""
    if stage != "out":
        return np.arange(graph.ffn if stage == "down" else graph.hidden)
    own_KH = np.arange(graph.kv_heads * graph.head_dim).reshape(graph.kv_heads, 1, graph.head_dim)
    return np.broadcast_to(own_KH, (graph.kv_heads, graph.heads // graph.kv_heads, graph.head_dim)).reshape(-1)


def first_of(pool_I: Array) -> Array:
    """The first input of each number."""
    return np.unique(pool_I, return_index=True)[1]


def apply(graph: DecoderSpec, block: Block, stage: str, fold: Fold, expert: int = 0) -> Block:
    """The layer with scales and offsets in it.

    Args:
        graph: The model.
        block: The layer.
        stage: The stage.
        fold: What its inputs become.
        expert: Of ``down``.
    """
    if stage == "qkv":
        return replace(block, norm=_norm(block.norm, fold), qkv=_weights(block.qkv, fold))
    if stage == "up":
        router = None if block.router is None else (block.router * fold.scale_I).astype(np.float32)
        up = tuple(_weights(one, fold) for one in block.up)
        return replace(block, ffn_norm=_norm(block.ffn_norm, fold), up=up, router=router)
    if stage == "out":
        values = slice((graph.heads + graph.kv_heads) * graph.head_dim, None)
        first = first_of(pooled(graph, "out"))
        offset = None if fold.offset_I is None else fold.offset_I[first]
        qkv = _outputs(block.qkv, values, Fold(fold.scale_I[first], offset))
        return replace(block, qkv=qkv, out=_weights(block.out, fold))
    part = slice(graph.ffn, None) if graph.activation == "swiglu" else slice(None)
    up = (*block.up[:expert], _outputs(block.up[expert], part, fold), *block.up[expert + 1 :])
    down = (*block.down[:expert], _weights(block.down[expert], fold), *block.down[expert + 1 :])
    return replace(block, up=up, down=down)


def apply_as_factors(block: Block, stage: str, fold: Fold, expert: int = 0) -> Block:
    """The layer with scales that nothing before the stage takes: its linears multiply their inputs by factors.

    Args:
        block: The layer.
        stage: The stage.
        fold: Scales, without offsets.
        expert: Of ``down``.
    """

    def own(linear: Matrix) -> Matrix:
        return Matrix(linear.weight * fold.scale_I[:, None], linear.bias, (1 / fold.scale_I).astype(np.float32))

    if stage == "down":
        return replace(block, down=(*block.down[:expert], own(block.down[expert]), *block.down[expert + 1 :]))
    part = getattr(block, stage)
    return replace(block, **{stage: tuple(map(own, part)) if isinstance(part, tuple) else own(part)})


def _weights(linear: Matrix, fold: Fold) -> Matrix:
    """A linear of the stage."""
    bias = linear.bias
    if fold.offset_I is not None:
        moved = (fold.offset_I.astype(np.float64) @ linear.weight).astype(np.float32)
        bias = moved if bias is None else bias + moved
    return Matrix(linear.weight * fold.scale_I[:, None], bias)


def _outputs(linear: Matrix, part: slice, fold: Fold) -> Matrix:
    """A linear whose outputs are inputs of the stage."""
    weight, bias = linear.weight.copy(), linear.bias
    weight[:, part] /= fold.scale_I
    if bias is not None or fold.offset_I is not None:
        bias = np.zeros(weight.shape[1], np.float32) if bias is None else bias.copy()
        bias[part] = (bias[part] - (0 if fold.offset_I is None else fold.offset_I)) / fold.scale_I
    return Matrix(weight, bias, linear.factors)


def _norm(weights: Norm, fold: Fold) -> Norm:
    bias = weights.bias
    if fold.offset_I is not None:
        bias = -fold.offset_I if bias is None else bias - fold.offset_I
    return Norm(
        (weights.weight / fold.scale_I).astype(np.float32),
        None if bias is None else (bias / fold.scale_I).astype(np.float32),
    )
