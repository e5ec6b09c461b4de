"""Qwen1.5-MoE and Qwen2-MoE: mixtures of experts and a shared expert in some or all layers.

https://arxiv.org/abs/2407.10671
"""

from llmctl import (
    HF_DECODER,
    ConfigError,
    ConfigField,
    Family,
    Gguf,
    Moe,
    Param,
    Size,
    TokenFacts,
    Unsupported,
    full_attention,
    hookimpl,
    linear_rows,
    rope_rule,
    template,
)

L, A, M = "layers.{layer}.", "layers.{layer}.self_attn.", "layers.{layer}.mlp."
HUB = "https://huggingface.co/Qwen/"
SHARDED = ("expert_ffn", "shared_ffn")
SMALL = dict(expert_ffn=1408, shared_ffn=5632, experts=60, top_k=4, max_positions=8192)
LARGE = dict(expert_ffn=2560, shared_ffn=20480, experts=64, top_k=8, max_positions=131072)

# https://huggingface.co/Qwen/Qwen2-57B-A14B/blob/main/tokenizer.json: the pre-tokenizer.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _size(name, parameters, layers, hidden, heads, kv_heads, ffn, **settings):
    values = dict(layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, ffn=ffn, vocab=151936)
    return Size(f"{HUB}{name}/blob/main/config.json", parameters, {**values, "rope_theta": 1e6, **settings})


def _sparse(config):
    """For each layer, whether its MLP is a mixture of experts."""
    dense, step = config.get("mlp_only_layers") or (), config.get("decoder_sparse_step") or 1
    return tuple((i + 1) % step == 0 and i not in dense for i in range(config["num_hidden_layers"]))


def _step(value):
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"decoder_sparse_step={value!r} must be a whole number above 0")


def _mlp(prefix, ffn, when, slots=("", "", ""), **row):
    gate, up, down = slots
    return (
        Param(prefix + "gate_proj.weight", f"hidden, {ffn}", slot=gate, when=when, **row),
        Param(prefix + "up_proj.weight", f"hidden, {ffn}", slot=up, when=when, **row),
        Param(prefix + "down_proj.weight", f"{ffn}, hidden", slot=down, when=when, **row),
    )


GGUF_NAMES = {
    M + f"{part}.{linear}_proj.weight": f"ffn_{linear}{end}"
    for part, end in (("experts.{expert}", ""), ("shared_expert", "_shexp"))
    for linear in ("gate", "up", "down")
} | {M + "shared_expert_gate.weight": "ffn_gate_inp_shexp"}
GGUF_SIZES = {"expert_ffn": "expert_feed_forward_length", "shared_ffn": "expert_shared_feed_forward_length"}


def _implied(metadata):
    """Widths of experts, which early files do not state, as llama.cpp takes them."""
    wide, chosen = metadata["feed_forward_length"], metadata["expert_used_count"]
    widths = {"expert_ffn": wide // chosen, "shared_ffn": wide}
    return {name: width for name, width in widths.items() if GGUF_SIZES[name] not in metadata}


CARD = Family(
    name="qwen2_moe",
    architectures=("Qwen2MoeForCausalLM",),
    model_type="qwen2_moe",
    modeling="llmctl_qwen2_moe.modeling:Qwen2MoeForCausalLM",
    paddle_prefix="qwen2_moe.",
    torch_prefix="model.",
    moe=Moe("softmax-topk", top_k=4, renormalize=False),
    settings=(
        *HF_DECODER,
        ConfigField("norm_eps", "rms_norm_eps", 1e-6),
        ConfigField("rope_theta", "rope_theta", 10000.0),
        ConfigField("rope_scaling", "rope_scaling", None, check=rope_rule),
        ConfigField("activation", "hidden_act", "silu", allowed=("silu",)),
        ConfigField("attention_dropout", "attention_dropout", 0.0, allowed=(0, 0.0)),
        ConfigField("sliding", "use_sliding_window", False, allowed=(False,)),
        ConfigField("layer_types", "layer_types", None, check=full_attention),
        ConfigField("experts", "num_experts", 60),
        ConfigField("top_k", "num_experts_per_tok", 4),
        ConfigField("renormalize", "norm_topk_prob", False),
        ConfigField("expert_ffn", "moe_intermediate_size", 1408),
        ConfigField("shared_ffn", "shared_expert_intermediate_size", 5632),
        ConfigField("step", "decoder_sparse_step", 1, check=_step),
        ConfigField("dense_layers", "mlp_only_layers", derive=lambda config: []),
        ConfigField("sparse", "", derive=_sparse),
        ConfigField("balance", "output_router_logits", False),
        ConfigField("aux_loss", "router_aux_loss_coef", 0.001),
        ConfigField("qkv_bias", "qkv_bias", True, allowed=(True,)),
    ),
    # Without effect while use_sliding_window is false.
    inert=("sliding_window", "max_window_layers"),
    tokens=TokenFacts(pattern=WORDS, normal_form="NFC", ends=("<|im_end|>",)),
    chat_template=template(__file__, "chat.jinja"),
    ignored_tensors=("*.rotary_emb.inv_freq",),
    gguf=Gguf("qwen2moe", words={"qwen2": WORDS}, names=GGUF_NAMES, sizes=GGUF_SIZES, implied=_implied),
    claims={"fused": Unsupported("the fused decoder has no shared expert")},
    sizes={
        "qwen1.5-moe-a2.7b": _size("Qwen1.5-MoE-A2.7B", 14_315_784_192, 24, 2048, 16, 16, 5632, **SMALL),
        "qwen2-57b-a14b": _size("Qwen2-57B-A14B", 57_408_658_944, 28, 3584, 28, 4, 18944, **LARGE),
    },
    params=(
        Param("embed_tokens.weight", "vocab, hidden", kind="embed", slot="embed"),
        *linear_rows(A + "q_proj", "hidden, heads*head_dim", "qkv.0"),
        *linear_rows(A + "k_proj", "hidden, kv_heads*head_dim", "qkv.1"),
        *linear_rows(A + "v_proj", "hidden, kv_heads*head_dim", "qkv.2"),
        Param(A + "o_proj.weight", "heads*head_dim, hidden", slot="out"),
        *_mlp(M, "ffn", "not sparse", ("ffn1.0", "ffn1.1", "ffn2")),
        Param(L + "input_layernorm.weight", "hidden", kind="norm", slot="ln"),
        Param(L + "post_attention_layernorm.weight", "hidden", kind="norm", slot="ffn_ln"),
        Param("norm.weight", "hidden", kind="norm", slot="final_ln"),
        Param("/lm_head.weight", "hidden, vocab", slot="head", when="not tied"),
        Param(M + "gate.weight", "hidden, experts", kind="router", slot="gate", when="sparse"),
        *_mlp(M + "experts.{expert}.", "expert_ffn", "sparse", shard=SHARDED),
        *_mlp(M + "shared_expert.", "shared_ffn", "sparse", shard=SHARDED),
        Param(M + "shared_expert_gate.weight", "hidden, 1", kind="router", when="sparse"),
    ),
)


@hookimpl
def describe_family():
    return CARD
