"""The GPT decoder, composed of blocks from ``llmctl.nn``; its tensors are those of the card. Shape suffixes as in ``llmctl.nn``."""

from __future__ import annotations

import paddle

from llmctl.nn import (
    MLP,
    Block,
    CausalLM,
    LayerNorm,
    PackedAttention,
    Stack,
    concatenated_qkv,
    embedding,
    gelu_tanh,
    head_of,
)
from llmctl_gpt3 import score_scale


class GPTForCausalLM(CausalLM):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        super().__init__("gpt", GPTDecoder(dims), head_of(dims))


class GPTDecoder(Stack):
    """Token ids to hidden states after the final norm; position embeddings are added to token embeddings."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.wte = embedding(dims.vocab, dims.hidden, dims.init_std)
        self.wpe = embedding(dims.max_positions, dims.hidden, dims.init_std)
        self.drop = paddle.nn.Dropout(dims.embedding_dropout)
        self.h = paddle.nn.LayerList(_block(dims, layer) for layer in range(dims.layers))
        self.ln_f = _norm(dims)

    @property
    def embedding_weight(self) -> paddle.Tensor:
        """The embedding table [V, D]."""
        return self.wte.weight

    @property
    def blocks(self) -> paddle.nn.LayerList:
        """The blocks in order."""
        return self.h

    def begin(self, input_ids_BT, layout):
        """The embeddings of tokens and positions, with dropout in training."""
        return self.drop(self.wte(input_ids_BT) + self.wpe(layout.position_BT))

    def end(self, x_BTD):
        """The final norm."""
        return self.ln_f(x_BTD)


def _block(dims, layer: int) -> Block:
    scale = score_scale(dims, layer) * dims.head_dim**0.5
    return Block(
        PackedAttention(dims, concatenated_qkv, ("c_attn", "c_proj"), dropout=dims.attention_dropout, scale=scale),
        MLP(dims.hidden, dims.ffn, gelu_tanh, ("c_fc", "c_proj"), dims.init_std),
        _norm(dims),
        _norm(dims),
        ("attn", "mlp", "ln_1", "ln_2"),
        dropout=dims.residual_dropout,
    )


def _norm(dims) -> LayerNorm:
    return LayerNorm(dims.hidden, dims.norm_eps)
