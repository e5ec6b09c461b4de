"""The ChatGLM decoders on parts from ``llmctl.nn``, the first with contexts that it finds by special tokens. Letters as there.

A document of ChatGLM-6B is ``... [gMASK] ... <bos> answer``: everything before ``<bos>`` is the context.
"""

from __future__ import annotations

import numpy as np
import paddle

from llmctl.errors import DataError
from llmctl.nn.assembly import decoder_of, head_of
from llmctl.nn.causal_lm import CausalLM
from llmctl.nn.frequencies import Rule, plain
from llmctl.nn.mlp import MLP, PackedGatedMLP, gelu_tanh
from llmctl.nn.norm import LayerNorm
from llmctl.nn.packed_attention import PackedAttention, grouped, interleaved
from llmctl.nn.position import Rotary, turn_first_halves, turn_halves

THETA = 10000.0
RESIDUAL = (2 * 28) ** 0.5
"""Factor of what is carried on, which is the norm's output. The original takes 28 layers however many there are."""
RULES = {"float16": Rule(lambda rotation, scaling: np.float16(plain(rotation, scaling)).tolist())}
"""Frequencies as the original holds them."""


class ChatGLMForCausalLM(CausalLM):
    """Token ids to logits, from what the card reads in ``config.json``."""

    def __init__(self, dims) -> None:
        decoder = decoder_of(
            dims,
            lambda: PackedAttention(dims, interleaved, turn=turn_halves),
            lambda: MLP(dims.hidden, dims.ffn, gelu_tanh, ("dense_h_to_4h", "dense_4h_to_h"), dims.init_std),
            LayerNorm,
            ("attention", "mlp", "input_layernorm", "post_attention_layernorm"),
            lambda x_BTD, normed_BTD: normed_BTD * RESIDUAL,
            names=("word_embeddings", "layers", "final_layernorm"),
            view=Contexts(dims),
        )
        super().__init__("chatglm", decoder, head_of(dims))


class ChatGLM2ForCausalLM(CausalLM):
    """Token ids to logits, from what the card reads in ``config.json``."""

    def __init__(self, dims) -> None:
        base, positions = (dims.rope_ratio, 1) if dims.rope_ratio_of == "base" else (1, dims.rope_ratio)
        decoder = decoder_of(
            dims,
            lambda: PackedAttention(dims, grouped(dims.heads // dims.kv_heads), out_bias=False, turn=turn_first_halves),
            lambda: PackedGatedMLP(dims.hidden, dims.ffn, ("dense_h_to_4h", "dense_4h_to_h"), dims.init_std),
            block_names=("self_attention", "mlp", "input_layernorm", "post_attention_layernorm"),
            names=("embedding.word_embeddings", "encoder.layers", "encoder.final_layernorm"),
            rotary=Rotary(dims.head_dim // 2, THETA * base, {"rope_type": "linear", "factor": positions}),
        )
        super().__init__("chatglm2", decoder, head_of(dims))


class Contexts:
    """Angles and mask of tokens, after contexts are found by the special tokens of each document."""

    def __init__(self, dims) -> None:
        self._rotary = Rotary(dims.head_dim // 2, THETA, {"rope_type": "float16"}, rules=RULES)
        self._marks = dims.bos, dims.gmask, dims.mask

    def __call__(self, input_ids_BT, layout, cache, dtype):
        if cache is not None and cache.rows:
            place_BT, first_BT = layout.position_BT - cache.rows["base"], None
            context_BT, masked_BT = cache.rows["context"], cache.rows["masked"]
        else:
            arrays = (values.numpy() for values in (input_ids_BT, layout.position_BT, layout.real_BT))
            found = find_contexts(*np.broadcast_arrays(*arrays), *self._marks)
            place_BT, context_BT, masked_BT, first_BT = map(paddle.to_tensor, found)
            if cache is not None:
                base = layout.position_BT[:, -1:] - place_BT[:, -1:]
                cache.rows = {"base": base, "context": context_BT[:, -1:], "masked": masked_BT[:, -1:]}
        beyond_BT = place_BT - context_BT + 1
        first_position_BT = paddle.where(beyond_BT > 0, masked_BT.expand_as(beyond_BT), place_BT)
        angles = [self._rotary(position, dtype) for position in (first_position_BT, beyond_BT.clip(min=0))]
        return angles, layout.mask(first_BT=first_BT)


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
            ids = ids_BT[row, document].tolist()
            context = ids[: ids.index(bos)] if bos in ids else ids
            marked = gmask if gmask in context else mask
            if bos not in ids or marked not in context:
                raise DataError(
                    f"row {row} has no token {'<bos>' if bos not in ids else '[gMASK] or [MASK]'}; a prompt of this "
                    f"family ends with [gMASK] <bos>, the ids {gmask} {bos}"
                )
            place_BT[row, document] = position_BT[row, document] - base
            first_BT[row, document[: len(context)]] = document[0]
            context_BT[row, document], masked_BT[row, document] = len(context), context.index(marked)
    return place_BT, context_BT, masked_BT, first_BT
