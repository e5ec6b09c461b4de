"""The Baichuan decoder, composed of blocks from ``llmctl.nn``; its tensors are those of the card."""

from __future__ import annotations

from functools import partial

import paddle

from llmctl import alibi_slopes
from llmctl.nn import Attention, CausalLM, GatedMLP, Layout, Linear, Rotary, decoder_of


class BaichuanForCausalLM(CausalLM):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        rope = dims.position == "rope"
        decoder = decoder_of(
            dims,
            lambda: Attention(dims.hidden, dims.heads, dims.kv_heads, dims.head_dim, std=dims.init_std),
            lambda: GatedMLP(dims.hidden, dims.ffn, std=dims.init_std),
            rotary=Rotary(dims.head_dim, dims.rope_theta, max_positions=dims.max_positions) if rope else None,
            mask=partial(Layout.mask, slopes=() if rope else alibi_slopes(dims.heads)),
        )
        head = NormHead if dims.norm_head else Linear
        super().__init__("baichuan", decoder, None if dims.tied else head(dims.hidden, dims.vocab, std=dims.init_std))


class NormHead(Linear):
    """An output head whose columns are normalised to length 1."""

    def forward(self, x):
        return paddle.matmul(x, self.weight / self.weight.norm(axis=0, keepdim=True).clip(min=1e-12))
