"""The ChatGLM decoders on parts from ``llmctl.nn``, the first with contexts that it finds by special tokens. Letters as there."""

from __future__ import annotations

from llmctl.nn.causal_lm import CausalLM
from llmctl.nn.decoder import decoder_of, head_of
from llmctl.nn.mlp import MLP, PackedGatedMLP, gelu_tanh
from llmctl.nn.norm import LayerNorm
from llmctl.nn.packed_attention import PackedAttention, grouped, interleaved
from llmctl.nn.prefix_lm import ContextView
from llmctl.nn.rotary import Rotary, turn_first_halves, turn_halves
from llmctl_chatglm import HALF, RESIDUAL_SCALE, RULES, THETA, prefix_lm
from llmctl_chatglm.chatglm2 import rotation


class ChatGLMForCausalLM(CausalLM):
    """Token ids to logits, from what the card reads in ``config.json``."""

    def __init__(self, dims) -> None:
        decoder = decoder_of(
            dims,
            lambda: PackedAttention(dims, interleaved, turn=turn_halves),
            lambda: MLP(dims.hidden, dims.ffn, gelu_tanh, ("dense_h_to_4h", "dense_4h_to_h"), dims.init_std),
            LayerNorm,
            ("attention", "mlp", "input_layernorm", "post_attention_layernorm"),
            lambda x_BTD, normed_BTD: normed_BTD * RESIDUAL_SCALE,
            names=("word_embeddings", "layers", "final_layernorm"),
            view=ContextView(Rotary(dims.head_dim // 2, THETA, HALF, rules=RULES), prefix_lm(dims)),
        )
        super().__init__("chatglm", decoder, head_of(dims))


class ChatGLM2ForCausalLM(CausalLM):
    """Token ids to logits, from what the card reads in ``config.json``."""

    def __init__(self, dims) -> None:
        decoder = decoder_of(
            dims,
            lambda: PackedAttention(dims, grouped(dims.heads // dims.kv_heads), out_bias=False, turn=turn_first_halves),
            lambda: PackedGatedMLP(dims.hidden, dims.ffn, ("dense_h_to_4h", "dense_4h_to_h"), dims.init_std),
            block_names=("self_attention", "mlp", "input_layernorm", "post_attention_layernorm"),
            names=("embedding.word_embeddings", "encoder.layers", "encoder.final_layernorm"),
            rotary=Rotary(dims.head_dim // 2, *rotation(dims)),
        )
        super().__init__("chatglm2", decoder, head_of(dims))
