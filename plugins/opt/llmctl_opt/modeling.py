"""The OPT decoder: a block of its own, on layers from ``llmctl.nn``. Shape suffixes as there."""

from __future__ import annotations

import paddle

from llmctl.nn import Attention, CausalLM, LayerNorm, Linear, Stack, embedding
from llmctl_opt import FIRST_POSITION


class OPTForCausalLM(CausalLM):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        head = None if dims.tied else Linear(dims.embed, dims.vocab, std=dims.init_std)
        super().__init__("opt", OPTDecoder(dims), head)


class OPTDecoder(Stack):
    """Token ids to hidden states of the embedding's width."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.embed_tokens = embedding(dims.vocab, dims.embed, dims.init_std)
        self.embed_positions = embedding(dims.max_positions + FIRST_POSITION, dims.hidden, dims.init_std)
        self.project_in = Linear(dims.embed, dims.hidden, std=dims.init_std) if dims.projected else None
        self.project_out = Linear(dims.hidden, dims.embed, std=dims.init_std) if dims.projected else None
        self.layers = paddle.nn.LayerList(OPTBlock(dims) for _ in range(dims.layers))
        self.final_layer_norm = LayerNorm(dims.hidden) if dims.final_norm else None
        self.drop = paddle.nn.Dropout(dims.dropout)

    @property
    def embedding_weight(self) -> paddle.Tensor:
        """The embedding table [V, D]."""
        return self.embed_tokens.weight

    @property
    def blocks(self) -> paddle.nn.LayerList:
        """The blocks in order."""
        return self.layers

    def begin(self, input_ids_BT, layout):
        """The embeddings of tokens and positions, with dropout in training."""
        x_BTD = self.embed_tokens(input_ids_BT)
        if self.project_in is not None:
            x_BTD = self.project_in(x_BTD)
        return self.drop(x_BTD + self.embed_positions(layout.position_BT + FIRST_POSITION))

    def end(self, x_BTD):
        """The final norm and the projection to the embedding's width, where the model has them."""
        if self.final_layer_norm is not None:
            x_BTD = self.final_layer_norm(x_BTD)
        return x_BTD if self.project_out is None else self.project_out(x_BTD)


class OPTBlock(paddle.nn.Layer):
    """Attention and MLP with residuals, pre-norm or post-norm."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.self_attn = Attention(
            dims.hidden, dims.heads, dims.heads, dims.head_dim, dims.bias, dims.init_std,
            out_name="out_proj", dropout=dims.attention_dropout,
        )  # fmt: skip
        self.self_attn_layer_norm = LayerNorm(dims.hidden)
        self.fc1 = Linear(dims.hidden, dims.ffn, dims.bias, dims.init_std)
        self.fc2 = Linear(dims.ffn, dims.hidden, dims.bias, dims.init_std)
        self.final_layer_norm = LayerNorm(dims.hidden)
        self.drop = paddle.nn.Dropout(dims.dropout)
        self._norm_before = dims.norm_before

    def forward(self, x_BTD, cos_sin, mask, cache=None, layer=0):
        x_BTD = self._residual(x_BTD, self.self_attn_layer_norm, lambda x: self.self_attn(x, None, mask, cache, layer))
        return self._residual(x_BTD, self.final_layer_norm, lambda x: self.fc2(paddle.nn.functional.relu(self.fc1(x))))

    def _residual(self, x_BTD, norm, sublayer):
        if self._norm_before:
            return x_BTD + self.drop(sublayer(norm(x_BTD)))
        return norm(x_BTD + self.drop(sublayer(x_BTD)))
