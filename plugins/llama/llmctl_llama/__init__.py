"""LLaMA 1, 2, 3, 3.1 and 3.2 (text): RMSNorm, RoPE, grouped-query attention, SwiGLU.

https://arxiv.org/abs/2302.13971, https://arxiv.org/abs/2307.09288, https://arxiv.org/abs/2407.21783
"""

from llmctl import (
    HF_DECODER,
    ROPE_BY_WAVELENGTH,
    ROPE_RULES,
    ConfigField,
    Family,
    Gguf,
    Param,
    Size,
    TokenFacts,
    hf_decoder_fused,
    hookimpl,
    linear_rows,
    rope_rule,
    rope_spec,
    template,
    word_pattern,
)

L, A, M = "layers.{layer}.", "layers.{layer}.self_attn.", "layers.{layer}.mlp."
META, HUGGY = "https://huggingface.co/meta-llama/", "https://huggingface.co/huggyllama/"
CHAT = template(__file__, "chat.jinja")

RULES = {**ROPE_RULES, "llama3": ROPE_BY_WAVELENGTH}
BANDS = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
LLAMA3_ROPE = dict(rope_type="llama3", factor=8.0, **BANDS)


def _size(source, parameters, layers, hidden, heads, kv_heads, ffn, vocab=32000, positions=4096, **settings):
    sizes = dict(layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, ffn=ffn, vocab=vocab)
    return Size(source + "/blob/main/config.json", parameters, {**sizes, "max_positions": positions, **settings})


LLAMA1 = dict(positions=2048, norm_eps=1e-6)
LLAMA3 = dict(vocab=128256, positions=8192, rope_theta=500000.0)
LLAMA31 = {**LLAMA3, "positions": 131072, "rope_scaling": LLAMA3_ROPE}
LLAMA32 = {**LLAMA31, "rope_scaling": {**LLAMA3_ROPE, "factor": 32.0}, "tied": True}

CARD = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    model_type="llama",
    modeling="llmctl_llama.modeling:LlamaForCausalLM",
    paddle_prefix="llama.",
    torch_prefix="model.",
    settings=(
        *HF_DECODER,
        ConfigField("norm_eps", "rms_norm_eps", 1e-5),
        ConfigField("rope_theta", "rope_theta", 10000.0),
        ConfigField("rope_scaling", "rope_scaling", None, check=lambda scaling: rope_rule(scaling, RULES)),
        ConfigField("attention_bias", "attention_bias", False),
        ConfigField("mlp_bias", "mlp_bias", False),
        ConfigField("activation", "hidden_act", "silu", allowed=("silu",)),
        ConfigField("attention_dropout", "attention_dropout", 0.0, allowed=(0, 0.0)),
    ),
    # Of SmolLM and SmolLM2, of Vicuna, and of PaddleNLP's early files; no code reads them.
    inert=("is_llama_config", "max_sequence_length", "attention_probs_dropout_prob", "hidden_dropout_prob"),
    tokens=TokenFacts(ends=("<|eot_id|>",), calls="object"),
    chat_template=CHAT,
    ignored_tensors=("*.rotary_emb.inv_freq",),
    starter="starter",
    gguf=Gguf("llama", True, {"llama-bpe": word_pattern(3)}, ("llama-bpe",), by_wavelength="llama3", written=True),
    paddlenlp=hf_decoder_fused,
    decoder=lambda dims: {"rope": rope_spec(dims, dims.rope_scaling, RULES)},
    sizes={
        "llama1-7b": _size(HUGGY + "llama-7b", 6_738_415_616, 32, 4096, 32, 32, 11008, **LLAMA1),
        "llama1-13b": _size(HUGGY + "llama-13b", 13_015_864_320, 40, 5120, 40, 40, 13824, **LLAMA1),
        "llama1-30b": _size(HUGGY + "llama-30b", 32_528_943_616, 60, 6656, 52, 52, 17920, **LLAMA1),
        "llama1-65b": _size(HUGGY + "llama-65b", 65_285_660_672, 80, 8192, 64, 64, 22016, **LLAMA1),
        "llama2-7b": _size(META + "Llama-2-7b-hf", 6_738_415_616, 32, 4096, 32, 32, 11008),
        "llama2-13b": _size(META + "Llama-2-13b-hf", 13_015_864_320, 40, 5120, 40, 40, 13824),
        "llama2-70b": _size(META + "Llama-2-70b-hf", 68_976_648_192, 80, 8192, 64, 8, 28672),
        "llama3-8b": _size(META + "Meta-Llama-3-8B", 8_030_261_248, 32, 4096, 32, 8, 14336, **LLAMA3),
        "llama3-70b": _size(META + "Meta-Llama-3-70B", 70_553_706_496, 80, 8192, 64, 8, 28672, **LLAMA3),
        "llama3.1-8b": _size(META + "Llama-3.1-8B", 8_030_261_248, 32, 4096, 32, 8, 14336, **LLAMA31),
        "llama3.1-70b": _size(META + "Llama-3.1-70B", 70_553_706_496, 80, 8192, 64, 8, 28672, **LLAMA31),
        "llama3.1-405b": _size(META + "Llama-3.1-405B", 405_853_388_800, 126, 16384, 128, 8, 53248, **LLAMA31),
        "llama3.2-1b": _size(META + "Llama-3.2-1B", 1_235_814_400, 16, 2048, 32, 8, 8192, **LLAMA32),
        "llama3.2-3b": _size(META + "Llama-3.2-3B", 3_212_749_824, 28, 3072, 24, 8, 8192, **LLAMA32),
        "llama3.3-70b": _size(META + "Llama-3.3-70B-Instruct", 70_553_706_496, 80, 8192, 64, 8, 28672, **LLAMA31),
    },
    params=(
        Param("embed_tokens.weight", "vocab, hidden", kind="embed", slot="embed"),
        *linear_rows(A + "q_proj", "hidden, heads*head_dim", "qkv.0", bias_when="attention_bias"),
        *linear_rows(A + "k_proj", "hidden, kv_heads*head_dim", "qkv.1", bias_when="attention_bias"),
        *linear_rows(A + "v_proj", "hidden, kv_heads*head_dim", "qkv.2", bias_when="attention_bias"),
        *linear_rows(A + "o_proj", "heads*head_dim, hidden", "out", bias_when="attention_bias"),
        *linear_rows(M + "gate_proj", "hidden, ffn", "ffn1.0", bias_when="mlp_bias"),
        *linear_rows(M + "up_proj", "hidden, ffn", "ffn1.1", bias_when="mlp_bias"),
        *linear_rows(M + "down_proj", "ffn, hidden", "ffn2", bias_when="mlp_bias"),
        Param(L + "input_layernorm.weight", "hidden", kind="norm", slot="ln"),
        Param(L + "post_attention_layernorm.weight", "hidden", kind="norm", slot="ffn_ln"),
        Param("norm.weight", "hidden", kind="norm", slot="final_ln"),
        Param("/lm_head.weight", "hidden, vocab", slot="head", when="not tied"),
    ),
)


@hookimpl
def describe_family():
    return CARD
