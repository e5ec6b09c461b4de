"""The Qwen2-MoE decoder, composed of blocks from ``llmctl.nn``; its tensors are those of the card."""

from __future__ import annotations

from paddle.nn.functional import sigmoid

from llmctl import Moe
from llmctl.nn import (
    Attention,
    Block,
    CausalLM,
    Decoder,
    GatedMLP,
    Linear,
    RMSNorm,
    Rotary,
    SoftmaxTopK,
    SparseMLP,
    embedding,
)


class Qwen2MoeForCausalLM(CausalLM):
    """Token ids to logits, with mixtures of experts in some or all layers.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        decoder = Decoder(
            embedding(dims.vocab, dims.hidden, dims.init_std),
            (_block(dims, sparse) for sparse in dims.sparse),
            RMSNorm(dims.hidden, dims.norm_eps),
            Rotary(dims.head_dim, dims.rope_theta, dims.rope_scaling, dims.max_positions),
        )
        head = None if dims.tied else Linear(dims.hidden, dims.vocab, std=dims.init_std)
        super().__init__("qwen2_moe", decoder, head, dims.aux_loss if dims.balance else 0.0)


class SharedSparseMLP(SparseMLP):
    """A mixture of experts plus a shared expert, which has a sigmoid gate."""

    def __init__(self, dims) -> None:
        moe = Moe("softmax-topk", dims.top_k, dims.renormalize)
        experts = (GatedMLP(dims.hidden, dims.expert_ffn, std=dims.init_std) for _ in range(dims.experts))
        super().__init__(SoftmaxTopK(dims.hidden, dims.experts, moe, dims.init_std), experts)
        self.shared_expert = GatedMLP(dims.hidden, dims.shared_ffn, std=dims.init_std)
        self.shared_expert_gate = Linear(dims.hidden, 1, std=dims.init_std)

    def forward(self, x_BTD):
        return super().forward(x_BTD) + sigmoid(self.shared_expert_gate(x_BTD)) * self.shared_expert(x_BTD)


def _block(dims, sparse: bool) -> Block:
    return Block(
        Attention(dims.hidden, dims.heads, dims.kv_heads, dims.head_dim, bias=True, std=dims.init_std, out_bias=False),
        SharedSparseMLP(dims) if sparse else GatedMLP(dims.hidden, dims.ffn, std=dims.init_std),
        RMSNorm(dims.hidden, dims.norm_eps),
        RMSNorm(dims.hidden, dims.norm_eps),
    )
