"""ChatGLM2 and ChatGLM3: a causal decoder with two key-value groups and RoPE on half of each head.

https://github.com/THUDM/ChatGLM2-6B and https://github.com/THUDM/ChatGLM3
"""

from llmctl import (
    ConfigError,
    ConfigField,
    Family,
    Gguf,
    Param,
    TokenFacts,
    above_zero,
    contiguous_slices,
    fixed_fields,
    hookimpl,
    interleaved_or_contiguous,
    linear_rows,
    required_fields,
    rope_spec,
    sizes,
    split_or_fused,
    template,
)
from llmctl_chatglm import NAMES, SETTINGS, THETA

L, A, M = "encoder.layers.{layer}.", "encoder.layers.{layer}.self_attention.", "encoder.layers.{layer}.mlp."
# The original code scales attention scores by the layer's number and undoes it; the other keys select its kernels.
INERT = (
    "apply_query_key_layer_scaling", "attention_softmax_in_fp32", "bias_dropout_fusion", "fp32_residual_connection",
    "vocab_size", "classifier_dropout",
)  # fmt: skip


def _ratio_of(config):
    """What ``rope_ratio`` scales. The releases for long contexts differ without saying so in config.json."""
    if (ratio := config.get("rope_ratio")) not in (None, 1):
        raise ConfigError(
            f"rope_ratio={ratio} multiplies the base of the rotations in ChatGLM3 and divides positions in ChatGLM2; "
            'add "rope_ratio_of": "base" or "rope_ratio_of": "positions"'
        )
    return "base"


def _paddlenlp(dims):
    """Files of some releases split queries, keys and values, and interleave gate and up column by column."""
    slices = contiguous_slices(dims.heads, dims.kv_heads, dims.kv_heads)
    qkv = split_or_fused(A + "query_key_value", [A + name for name in ("query", "key", "value")], slices)
    return {"/lm_head": "output_layer", **qkv, **interleaved_or_contiguous(M + "dense_h_to_4h", 2, dims.ffn)}


def rotation(dims):
    """Base and scaling of RoPE."""
    base, positions = (dims.rope_ratio, 1) if dims.rope_ratio_of == "base" else (1, dims.rope_ratio)
    return THETA * base, {"rope_type": "linear", "factor": positions}


def _decoder(dims):
    theta, scaling = rotation(dims)
    return {"rope": rope_spec(dims, scaling, theta=theta, rotary_dim=dims.head_dim // 2, pairs="interleaved")}


CARD = Family(
    name="chatglm2",
    **NAMES,
    recognise=lambda config: "multi_query_group_num" in config,
    modeling="llmctl_chatglm.modeling:ChatGLM2ForCausalLM",
    paddle_prefix="chatglm2.",
    torch_prefix="transformer.",
    position="rope-half-interleaved",
    settings=(
        *SETTINGS,
        *required_fields(kv_heads="multi_query_group_num", ffn="ffn_hidden_size", vocab="padded_vocab_size"),
        ConfigField("head_dim", "kv_channels", derive="hidden/heads"),
        ConfigField("max_positions", "seq_length", 2048),
        ConfigField("rope_ratio", "rope_ratio", 1, check=above_zero("rope_ratio")),
        ConfigField("rope_ratio_of", "rope_ratio_of", derive=_ratio_of, allowed=("base", "positions")),
        *fixed_fields(True, grouped="multi_query_attention", rms="rmsnorm", final_norm="post_layer_norm"),
        *fixed_fields(True, qkv_bias="add_qkv_bias", first_rope="original_rope"),
        *fixed_fields(False, bias="add_bias_linear", interleaved="interleaved_qkv"),
        *fixed_fields(False, post_norm_residual="apply_residual_connection_post_layernorm"),
        *fixed_fields(0, 0.0, hidden_dropout="hidden_dropout", attention_dropout="attention_dropout"),
    ),
    inert=INERT,
    # https://huggingface.co/THUDM/chatglm3-6b/blob/main/tokenization_chatglm.py: special tokens after those of the file.
    tokens=TokenFacts(
        appended=("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"),
        optional=("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        roles={"eos": "</s>", "pad": "<unk>", "unk": "<unk>"},
        prefix=("[gMASK]", "sop"),
        ends=("<|user|>", "<|observation|>"),
    ),
    chat_template=template(__file__, "chat2.jinja"),
    ignored_tensors=("*rotary_pos_emb.inv_freq",),
    paddlenlp=_paddlenlp,
    paddlenlp_prefix="chatglm_v2.",
    decoder=_decoder,
    gguf=Gguf("chatglm", rotated=0.5),
    sizes=sizes(__file__, "chatglm2"),
    params=(
        Param("embedding.word_embeddings.weight", "vocab, hidden", kind="embed", slot="embed"),
        Param(L + "input_layernorm.weight", "hidden", kind="norm", slot="ln"),
        *linear_rows(A + "query_key_value", "hidden, heads*head_dim + kv_heads*head_dim + kv_heads*head_dim", "qkv"),
        Param(A + "dense.weight", "heads*head_dim, hidden", slot="out"),
        Param(L + "post_attention_layernorm.weight", "hidden", kind="norm", slot="ffn_ln"),
        Param(M + "dense_h_to_4h.weight", "hidden, 2*ffn", slot="ffn1"),
        Param(M + "dense_4h_to_h.weight", "ffn, hidden", slot="ffn2"),
        Param("encoder.final_layernorm.weight", "hidden", kind="norm", slot="final_ln"),
        Param("/lm_head.weight", "hidden, vocab", torch="output_layer.weight", slot="head"),
    ),
)


@hookimpl
def describe_family():
    return CARD
