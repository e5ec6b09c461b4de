"""The ChatGLM decoders on parts from ``llmctl.nn``, the first of them a prefix-LM. Shape suffixes as there."""

from llmctl.nn import (
    MLP,
    CausalLM,
    LayerNorm,
    PackedAttention,
    PackedGatedMLP,
    PrefixLMInputs,
    Rotary,
    apply_rope_2d,
    apply_rope_half_interleaved,
    decoder_of,
    gelu_tanh,
    grouped_qkv,
    head_of,
    interleaved_qkv,
)
from llmctl_chatglm import HALF, RESIDUAL_SCALE, RULES, THETA, prefix_lm
from llmctl_chatglm.chatglm2 import rotation


class ChatGLMForCausalLM(CausalLM):
    """Token ids to logits, from what the card reads in ``config.json``."""

    def __init__(self, dims) -> None:
        decoder = decoder_of(
            dims,
            lambda: PackedAttention(dims, interleaved_qkv, rope=apply_rope_2d),
            lambda: MLP(dims.hidden, dims.ffn, gelu_tanh, ("dense_h_to_4h", "dense_4h_to_h"), dims.init_std),
            LayerNorm,
            ("attention", "mlp", "input_layernorm", "post_attention_layernorm"),
            lambda x_BTD, normed_BTD: normed_BTD * RESIDUAL_SCALE,
            names=("word_embeddings", "layers", "final_layernorm"),
            attention_inputs=PrefixLMInputs(Rotary(dims.head_dim // 2, THETA, HALF, rules=RULES), prefix_lm(dims)),
        )
        super().__init__("chatglm", decoder, head_of(dims))


class ChatGLM2ForCausalLM(CausalLM):
    """Token ids to logits, from what the card reads in ``config.json``."""

    def __init__(self, dims) -> None:
        decoder = decoder_of(
            dims,
            lambda: PackedAttention(
                dims, grouped_qkv(dims.heads // dims.kv_heads), out_bias=False, rope=apply_rope_half_interleaved
            ),
            lambda: PackedGatedMLP(dims.hidden, dims.ffn, ("dense_h_to_4h", "dense_4h_to_h"), dims.init_std),
            block_names=("self_attention", "mlp", "input_layernorm", "post_attention_layernorm"),
            names=("embedding.word_embeddings", "encoder.layers", "encoder.final_layernorm"),
            rotary=Rotary(dims.head_dim // 2, *rotation(dims)),
        )
        super().__init__("chatglm2", decoder, head_of(dims))
