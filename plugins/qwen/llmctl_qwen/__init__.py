"""Qwen, the first generation: packed QKV with biases, NTK scaling of RoPE for long texts.

https://arxiv.org/abs/2309.16609. Qwen2 and Qwen3 are cards of their own.
"""

import math

from llmctl import (
    ConfigField,
    Family,
    Gguf,
    Param,
    RopeParams,
    RopeRule,
    TokenFacts,
    contiguous_slices,
    fixed_fields,
    fused_or_split,
    hookimpl,
    linear_rows,
    required_fields,
    rope_frequencies,
    rope_spec,
    sizes,
    template,
    word_pattern,
)

H, A, M = "h.{layer}.", "h.{layer}.attn.", "h.{layer}.mlp."

# https://huggingface.co/Qwen/Qwen-7B/blob/main/tokenization_qwen.py: the pre-tokenizer, and special tokens after those of the file.
TEXT = dict(pattern=word_pattern(1), normal_form="NFC", ends=("<|im_end|>",), calls="tagged")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
CHATML = template(__file__, "chatml.jinja")
HELPFUL = "{% set default_system = 'You are a helpful assistant.' %}" + CHATML


def _ntk(rotation, scaling):
    """NTK scaling: the base grows in steps, each time the length doubles beyond the trained length."""
    alpha = 1.0
    if rotation.length > rotation.max_positions:
        alpha = 2.0 ** math.ceil(math.log2(rotation.length / rotation.max_positions) + 1) - 1
    theta = rotation.theta * alpha ** (rotation.head_dim / (rotation.head_dim - 2))
    return rope_frequencies(RopeParams(rotation.head_dim, theta), scaling)


NTK = {"rope_type": "ntk-steps"}
UNSCALED = {"dynamic_ntk": False, "log_n": False}  # As llama.cpp computes.
RULES = {"default": RopeRule(rope_frequencies), "ntk-steps": RopeRule(_ntk, by_length=True)}


def _decoder(dims):
    scaling, log_base = NTK if dims.dynamic_ntk else None, dims.trained if dims.log_n else None
    return {"rope": rope_spec(dims, scaling, RULES, trained=dims.trained, log_base=log_base)}


CARD = Family(
    name="qwen",
    architectures=("QWenLMHeadModel",),
    model_type="qwen",
    modeling="llmctl_qwen.modeling:QwenForCausalLM",
    paddle_prefix="qwen.",
    torch_prefix="transformer.",
    position="rope-neox-ntk",
    settings=(
        *required_fields(layers="num_hidden_layers", hidden="hidden_size", heads="num_attention_heads"),
        *required_fields(double_ffn="intermediate_size", vocab="vocab_size"),
        ConfigField("kv_heads", "", derive="heads"),
        ConfigField("head_dim", "kv_channels", derive="hidden/heads"),
        ConfigField("ffn", "", derive="double_ffn/2"),
        ConfigField("max_positions", "max_position_embeddings", 8192),
        ConfigField("trained", "seq_length", 2048),
        ConfigField("init_std", "initializer_range", 0.02),
        ConfigField("norm_eps", "layer_norm_epsilon", 1e-6),
        ConfigField("rope_theta", "rotary_emb_base", 10000),
        ConfigField("dynamic_ntk", "use_dynamic_ntk", True),
        ConfigField("log_n", "use_logn_attn", True),
        *fixed_fields(False, tied="tie_word_embeddings"),
        *fixed_fields(True, without_bias="no_bias", scaled="scale_attn_weights"),
        *fixed_fields(1, 1.0, rope_part="rotary_pct"),
        *fixed_fields(0, 0.0, attention_dropout="attn_dropout_prob", embedding_dropout="emb_dropout_prob"),
    ),
    tokens=TokenFacts(**TEXT, appended=SPECIAL, roles={"eos": SPECIAL[0]}),
    chat_template=HELPFUL,
    ignored_tensors=("*.rotary_emb.inv_freq", "*.attn.masked_bias"),
    paddlenlp=lambda _: fused_or_split([M + "w2", M + "w1"], M + "gate_up_fused_proj", contiguous_slices(1, 1), "ffn"),
    gguf=Gguf("qwen", words={"qwen2": TEXT["pattern"]}, sizes={"double_ffn": "feed_forward_length"}, implied=UNSCALED),
    decoder=_decoder,
    inert=("onnx_safe", "use_cache_quantization", "use_cache_kernel", "softmax_in_fp32"),
    sizes=sizes(__file__, "qwen"),
    params=(
        Param("wte.weight", "vocab, hidden", kind="embed", slot="embed"),
        *linear_rows(A + "c_attn", "hidden, 3*heads*head_dim", "qkv"),
        Param(A + "c_proj.weight", "heads*head_dim, hidden", slot="out"),
        Param(M + "w2.weight", "hidden, ffn", slot="ffn1.0"),
        Param(M + "w1.weight", "hidden, ffn", slot="ffn1.1"),
        Param(M + "c_proj.weight", "ffn, hidden", slot="ffn2"),
        Param(H + "ln_1.weight", "hidden", kind="norm", slot="ln"),
        Param(H + "ln_2.weight", "hidden", kind="norm", slot="ffn_ln"),
        Param("ln_f.weight", "hidden", kind="norm", slot="final_ln"),
        Param("/lm_head.weight", "hidden, vocab", slot="head"),
    ),
)


@hookimpl
def describe_family():
    return CARD
