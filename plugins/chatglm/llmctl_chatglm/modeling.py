"""The ChatGLM-6B decoder: context and answer told apart by special tokens, on parts from ``llmctl.nn``.

Letters as in ``llmctl.nn``. A row holds ``... [gMASK] <bos> answer``: everything before ``<bos>`` is the context.
"""

from __future__ import annotations

import struct

import numpy as np
import paddle

from llmctl.errors import DataError
from llmctl.nn.attention import attend
from llmctl.nn.causal_lm import CausalLM
from llmctl.nn.decoder import embedding, run_layers
from llmctl.nn.frequencies import Rule, plain
from llmctl.nn.linear import Linear
from llmctl.nn.mlp import MLP, gelu_tanh
from llmctl.nn.position import Rotary, rotate

THETA = 10000.0
RESIDUAL = (2 * 28) ** 0.5
"""Factor of what is carried on. The original takes 28 layers however many there are."""


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
    """Token ids to hidden states after the final norm. Positions come from the special tokens of each row."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.word_embeddings = embedding(dims.vocab, dims.hidden, dims.init_std)
        self.layers = paddle.nn.LayerList(ChatGLMBlock(dims) for _ in range(dims.layers))
        self.final_layernorm = _norm(dims)
        self._rotary = Rotary(dims.head_dim // 2, THETA, ROUNDED, rules=RULES)
        self._marks = dims.bos, dims.gmask, dims.mask

    def forward(self, input_ids_BT, attention_mask_BS=None, position_ids_BT=None, cache=None):
        new, past = input_ids_BT.shape[1], cache.length if cache is not None else 0
        if attention_mask_BS is None:
            attention_mask_BS = paddle.ones([input_ids_BT.shape[0], past + new], "int64")
        if past:
            context_B, masked_B = cache.rows["context"], cache.rows["masked"]
        else:
            found = find_context(input_ids_BT.numpy(), attention_mask_BS.numpy(), *self._marks)
            context_B, masked_B = map(paddle.to_tensor, found)
            if cache is not None:
                cache.rows = {"context": context_B, "masked": masked_B}
        x_BTD = self.word_embeddings(input_ids_BT)
        first_BT, second_BT = positions_2d(attention_mask_BS, context_B, masked_B)
        angles = [self._rotary(position[:, past:], x_BTD.dtype) for position in (first_BT, second_BT)]
        bias = prefix_bias(new, past, attention_mask_BS, context_B, x_BTD.dtype)
        return self.final_layernorm(run_layers(self.layers, x_BTD, angles, bias, cache))


def find_context(ids_BT, mask_BT, bos, gmask, mask):
    """The column of <bos> of each row, and the place among its real tokens of the mask token it answers, as int64.

    Raises:
        DataError: A row has no such tokens.
    """
    contexts, places = [], []
    for row, (ids, real) in enumerate(zip(ids_BT, mask_BT, strict=True)):
        start = np.flatnonzero((ids == bos) & (real == 1))
        wanted = gmask if ((ids == gmask) & (real == 1)).any() else mask
        masked = np.flatnonzero((ids == wanted) & (real == 1))
        if not len(start) or not len(masked):
            raise DataError(
                f"row {row} has no token {'<bos>' if not len(start) else '[gMASK] or [MASK]'}; a prompt of this family "
                f"ends with [gMASK] <bos>, the ids {gmask} {bos}"
            )
        contexts.append(start[0])
        places.append(real[: masked[0]].sum())
    return np.array(contexts, np.int64), np.array(places, np.int64)


def positions_2d(mask_BS, context_B, masked_B):
    """Both position ids of every column [B, S]: places in the context, then places in the answer from 1 on."""
    column_1S = paddle.arange(mask_BS.shape[1], dtype="int64").unsqueeze(0)
    beyond_BS = column_1S - context_B.unsqueeze(-1) + 1
    place_BS = (mask_BS.astype("int64").cumsum(axis=-1) - 1).clip(min=0)
    held_BS = masked_B.unsqueeze(-1).expand_as(place_BS)
    return paddle.where(beyond_BS > 0, held_BS, place_BS), beyond_BS.clip(min=0)


def prefix_bias(new, past, mask_BS, context_B, dtype):
    """Added to scores [B, 1, T, S]: a query sees the whole context and what is not after itself."""
    total = past + new
    column_S = paddle.arange(total)
    causal_1TS = (column_S <= paddle.arange(past, total).unsqueeze(-1)).unsqueeze(0)
    context_B1S = (column_S.unsqueeze(0) < context_B.unsqueeze(-1)).unsqueeze(1)
    allowed = paddle.logical_and(paddle.logical_or(causal_1TS, context_B1S), mask_BS.astype("bool").unsqueeze(1))
    lowest = paddle.full([], paddle.finfo(dtype).min, dtype)
    return paddle.where(allowed, paddle.zeros([], dtype), lowest).unsqueeze(1)


class ChatGLMBlock(paddle.nn.Layer):
    """Attention and MLP after norms; what is added to each is the norm's output times ``RESIDUAL``."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.input_layernorm = _norm(dims)
        self.attention = ChatGLMAttention(dims)
        self.post_attention_layernorm = _norm(dims)
        self.mlp = MLP(dims.hidden, dims.ffn, gelu_tanh, ("dense_h_to_4h", "dense_4h_to_h"), dims.init_std)

    def forward(self, x_BTD, angles, bias, cache=None, layer=0):
        x_BTD = self.input_layernorm(x_BTD)
        x_BTD = x_BTD * RESIDUAL + self.attention(x_BTD, angles, bias, cache, layer)
        x_BTD = self.post_attention_layernorm(x_BTD)
        return x_BTD * RESIDUAL + self.mlp(x_BTD)


class ChatGLMAttention(paddle.nn.Layer):
    """Multi-head attention; one half of each head turns with the first position, the other with the second."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.head_dim, width = dims.head_dim, dims.heads * dims.head_dim
        self.query_key_value = Linear(dims.hidden, 3 * width, True, dims.init_std)
        self.dense = Linear(width, dims.hidden, True, dims.init_std)

    def forward(self, x_BTD, angles, bias, cache, layer):
        packed = self.query_key_value(x_BTD).reshape([0, 0, -1, 3 * self.head_dim])
        q, k, v = paddle.split(packed, 3, axis=-1)
        q, k = _turn(q, angles), _turn(k, angles)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        return self.dense(attend(q, k, v, bias))


def _turn(x_BTNH, angles):
    halves = paddle.split(x_BTNH, 2, axis=-1)
    return paddle.concat([rotate(half, *angle) for half, angle in zip(halves, angles, strict=True)], axis=-1)


def _norm(dims) -> paddle.nn.LayerNorm:
    return paddle.nn.LayerNorm(dims.hidden, epsilon=dims.norm_eps)
