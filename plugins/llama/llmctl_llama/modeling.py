"""The LLaMA decoder, composed of blocks from ``llmctl.nn``; its tensors are those of the card."""

from __future__ import annotations

import paddle

from llmctl.nn.attention import Attention
from llmctl.nn.block import Block
from llmctl.nn.cache import KVCache
from llmctl.nn.decoder import Decoder, embedding
from llmctl.nn.linear import Linear
from llmctl.nn.mlp import GatedMLP
from llmctl.nn.norm import RMSNorm
from llmctl.nn.position import Rotary
from llmctl_llama import ROPE_RULES


class LlamaForCausalLM(paddle.nn.Layer):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.

    Raises:
        ConfigError: ``rope_scaling`` is of a kind that is not supported.
    """

    def __init__(self, dims) -> None:
        super().__init__()
        rotary = Rotary(dims.head_dim, dims.rope_theta, dims.rope_scaling, dims.max_positions, ROPE_RULES)
        self.llama = Decoder(
            embedding(dims.vocab, dims.hidden, dims.init_std),
            (_block(dims) for _ in range(dims.layers)),
            RMSNorm(dims.hidden, dims.norm_eps),
            rotary,
        )
        self.lm_head = None if dims.tied else Linear(dims.hidden, dims.vocab, std=dims.init_std)

    @property
    def position_depends_on_length(self) -> bool:
        """Whether cached keys go stale as a sequence grows, so that generation must run without a cache."""
        return self.llama.rotary.by_length

    def hidden_states(
        self,
        input_ids_BT: paddle.Tensor,
        attention_mask_BS: paddle.Tensor | None = None,
        position_ids_BT: paddle.Tensor | None = None,
        cache: KVCache | None = None,
    ) -> paddle.Tensor:
        """Hidden states after the final norm [B, T, D].

        Args:
            input_ids_BT: Token ids.
            attention_mask_BS: 1 = real, 0 = padding, over past and new positions; None = all real.
            position_ids_BT: None = counted from the mask.
            cache: Keys and values of past positions; this call appends to it.
        """
        return self.llama(input_ids_BT, attention_mask_BS, position_ids_BT, cache)

    def logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """Scores of the vocabulary for hidden states of any leading shape."""
        if self.lm_head is None:
            return paddle.matmul(hidden, self.llama.embed_tokens.weight, transpose_y=True)
        return self.lm_head(hidden)

    def forward(
        self,
        input_ids_BT: paddle.Tensor,
        attention_mask_BS: paddle.Tensor | None = None,
        position_ids_BT: paddle.Tensor | None = None,
        cache: KVCache | None = None,
    ) -> paddle.Tensor:
        """Logits [B, T, V] of every position; arguments as for ``hidden_states``."""
        return self.logits(self.hidden_states(input_ids_BT, attention_mask_BS, position_ids_BT, cache))


def _block(dims) -> Block:
    """One layer of the decoder."""
    return Block(
        Attention(dims.hidden, dims.heads, dims.kv_heads, dims.head_dim, dims.attention_bias, dims.init_std),
        GatedMLP(dims.hidden, dims.ffn, dims.mlp_bias, dims.init_std),
        RMSNorm(dims.hidden, dims.norm_eps),
        RMSNorm(dims.hidden, dims.norm_eps),
    )
