"""The Bloom decoder, composed of blocks from ``llmctl.nn``; its tensors are those of the card. Shape suffixes as in ``llmctl.nn``."""

from __future__ import annotations

import paddle

from llmctl import alibi_slopes
from llmctl.nn import (
    MLP,
    Block,
    CausalLM,
    LayerNorm,
    PackedAttention,
    Stack,
    embedding,
    gelu_tanh,
    head_of,
    interleaved_qkv,
)

NAMES = ("self_attention", "mlp", "input_layernorm", "post_attention_layernorm")


class BloomForCausalLM(CausalLM):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        super().__init__("bloom", BloomDecoder(dims), head_of(dims))


class BloomDecoder(Stack):
    """Token ids to hidden states after the final norm; embeddings are normalised, positions enter as ALiBi."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.word_embeddings = embedding(dims.vocab, dims.hidden, dims.init_std)
        self.word_embeddings_layernorm = _norm(dims)
        self.h = paddle.nn.LayerList(_block(dims) for _ in range(dims.layers))
        self.ln_f = _norm(dims)
        self._slopes = alibi_slopes(dims.heads)

    @property
    def embedding_weight(self) -> paddle.Tensor:
        """The embedding table [V, D]."""
        return self.word_embeddings.weight

    @property
    def blocks(self) -> paddle.nn.LayerList:
        """The blocks in order."""
        return self.h

    def begin(self, input_ids_BT, layout):
        """The normalised embeddings."""
        return self.word_embeddings_layernorm(self.word_embeddings(input_ids_BT))

    def inputs(self, input_ids_BT, layout, cache, dtype):
        """The mask with the slopes of the heads."""
        return None, layout.mask(slopes=self._slopes)

    def end(self, x_BTD):
        """The final norm."""
        return self.ln_f(x_BTD)


def _block(dims) -> Block:
    """One layer; the residual is taken before the norms, or after them where the dims say so."""
    return Block(
        PackedAttention(dims, interleaved_qkv),
        MLP(dims.hidden, dims.ffn, gelu_tanh, ("dense_h_to_4h", "dense_4h_to_h"), dims.init_std),
        _norm(dims),
        _norm(dims),
        NAMES,
        (lambda x_BTD, normed_BTD: normed_BTD) if dims.post_norm_residual else None,
    )


def _norm(dims) -> LayerNorm:
    return LayerNorm(dims.hidden, dims.norm_eps)
