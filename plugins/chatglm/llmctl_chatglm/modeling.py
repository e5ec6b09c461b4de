"""The ChatGLM-6B decoder: context and answer told apart by special tokens, on parts from ``llmctl.nn``.

Letters as in ``llmctl.nn``. A document is ``... [gMASK] ... <bos> answer``: everything before ``<bos>`` is the context.
"""

from __future__ import annotations

import struct

import numpy as np
import paddle

from llmctl.errors import DataError
from llmctl.nn.block import Block
from llmctl.nn.causal_lm import CausalLM
from llmctl.nn.decoder import embedding, run_layers
from llmctl.nn.frequencies import Rule, plain
from llmctl.nn.linear import Linear
from llmctl.nn.mlp import MLP, gelu_tanh
from llmctl.nn.packed_attention import PackedAttention, interleaved
from llmctl.nn.position import Rotary, rotate

THETA = 10000.0
RESIDUAL = (2 * 28) ** 0.5
"""Factor of what is carried on, which is the norm's output. The original takes 28 layers however many there are."""
NAMES = ("attention", "mlp", "input_layernorm", "post_attention_layernorm")


def _half(rotation, scaling):
    """Frequencies as the original holds them, rounded to float16."""
    return [struct.unpack("e", struct.pack("e", frequency))[0] for frequency in plain(rotation, scaling)]


ROUNDED = {"rope_type": "float16"}
RULES = {"float16": Rule(_half)}


class ChatGLMForCausalLM(CausalLM):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        super().__init__("chatglm", ChatGLMDecoder(dims), Linear(dims.hidden, dims.vocab, std=dims.init_std))


class ChatGLMDecoder(paddle.nn.Layer):
    """Token ids to hidden states after the final norm. Contexts are found by the special tokens of each document."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.word_embeddings = embedding(dims.vocab, dims.hidden, dims.init_std)
        self.layers = paddle.nn.LayerList(_block(dims) for _ in range(dims.layers))
        self.final_layernorm = _norm(dims)
        self._rotary = Rotary(dims.head_dim // 2, THETA, ROUNDED, rules=RULES)
        self._marks = dims.bos, dims.gmask, dims.mask

    def forward(self, input_ids_BT, layout, cache=None):
        first_BS = None
        if cache is not None and cache.rows:
            place_BT = layout.position_BT - cache.rows["base"]
            context_BT, masked_BT = cache.rows["context"], cache.rows["masked"]
        else:
            ids_BT, position_BT = np.broadcast_arrays(input_ids_BT.numpy(), layout.position_BT.numpy())
            real_BT = np.ones_like(ids_BT) if layout.real_BS is None else layout.real_BS.numpy()[:, layout.past :]
            if layout.packed:
                real_BT = real_BT * (layout.end_BT.numpy() > 0)
            found = find_contexts(ids_BT, position_BT, real_BT, *self._marks)
            place_BT, context_BT, masked_BT, first_BT = map(paddle.to_tensor, found)
            before_BS = paddle.arange(layout.past).unsqueeze(0).expand([ids_BT.shape[0], layout.past])
            first_BS = paddle.concat([before_BS, first_BT + layout.past], axis=1)
            if cache is not None:
                base = layout.position_BT[:, -1:] - place_BT[:, -1:]
                cache.rows = {"base": base, "context": context_BT[:, -1:], "masked": masked_BT[:, -1:]}
        x_BTD = self.word_embeddings(input_ids_BT)
        beyond_BT = place_BT - context_BT + 1
        first_position_BT = paddle.where(beyond_BT > 0, masked_BT.expand_as(beyond_BT), place_BT)
        angles = [self._rotary(position, x_BTD.dtype) for position in (first_position_BT, beyond_BT.clip(min=0))]
        return self.final_layernorm(run_layers(self.layers, x_BTD, angles, layout.mask(first_BS=first_BS), cache))


def find_contexts(ids_BT, position_BT, real_BT, bos, gmask, mask):
    """For every token, as int64 [B, T]: its place in its document, the place of the document's <bos>, the place of the
    mask token that the answer stands for, and the first column whose token sees it.

    A document begins where positions do. Padding, whatever its values, is seen by nobody.

    Raises:
        DataError: A document has no such tokens.
    """
    place_BT, context_BT, masked_BT = (np.zeros(ids_BT.shape, np.int64) for _ in range(3))
    first_BT = np.broadcast_to(np.arange(ids_BT.shape[1]), ids_BT.shape).copy()
    for row in range(len(ids_BT)):
        columns = np.flatnonzero(real_BT[row])
        base = position_BT[row, columns].min(initial=0 if not len(columns) else None)
        for document in np.split(columns, np.flatnonzero(position_BT[row, columns] == base)[1:]):
            ids, places = ids_BT[row, document], position_BT[row, document] - base
            starts = np.flatnonzero(ids == bos)
            context = starts[0] if len(starts) else len(ids)
            masks = [np.flatnonzero(ids[:context] == kind) for kind in (gmask, mask)]
            marked = next((found for found in masks if len(found)), None)
            if not len(starts) or marked is None:
                raise DataError(
                    f"row {row} has no token {'<bos>' if not len(starts) else '[gMASK] or [MASK]'}; a prompt of this "
                    f"family ends with [gMASK] <bos>, the ids {gmask} {bos}"
                )
            place_BT[row, document], context_BT[row, document], masked_BT[row, document] = places, context, marked[0]
            first_BT[row, document[:context]] = document[0]
    return place_BT, context_BT, masked_BT, first_BT


def _block(dims) -> Block:
    return Block(
        PackedAttention(dims, interleaved, turn=_turn),
        MLP(dims.hidden, dims.ffn, gelu_tanh, ("dense_h_to_4h", "dense_4h_to_h"), dims.init_std),
        _norm(dims),
        _norm(dims),
        NAMES,
        lambda x_BTD, normed_BTD: normed_BTD * RESIDUAL,
    )


def _turn(q_BTNH, k_BTNH, angles):
    """One half of each head turned by the first position, the other by the second."""
    halves = (paddle.split(x, 2, axis=-1) for x in (q_BTNH, k_BTNH))
    return tuple(paddle.concat([rotate(h, *a) for h, a in zip(half, angles, strict=True)], axis=-1) for half in halves)


def _norm(dims) -> paddle.nn.LayerNorm:
    return paddle.nn.LayerNorm(dims.hidden, epsilon=dims.norm_eps)
