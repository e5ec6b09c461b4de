"""Bloom: ALiBi, LayerNorm after the embedding, QKV interleaved per head, mostly a tied output head.

https://arxiv.org/abs/2211.05100
"""

from llmctl import ConfigError, ConfigField, Family, Gguf, Param, Size, hookimpl, linear_rows, norm_rows

H, A, M = "h.{layer}.", "h.{layer}.self_attention.", "h.{layer}.mlp."
HUB = "https://huggingface.co/bigscience/"

# https://huggingface.co/bigscience/bloom/blob/main/tokenizer.json: the pre-tokenizer.
WORDS = r" ?[^(\s|[.,!?…。，、।۔،])]+"


def _other(key, older):
    """Reads a size under its key in the first releases."""

    def read(config):
        if older not in config:
            raise ConfigError(f"config.json has neither {key!r} nor {older!r}, which the family bloom needs")
        return config[older]

    return read


def _size(name, parameters, layers, hidden, heads):
    values = dict(layers=layers, hidden=hidden, heads=heads, vocab=250880)
    return Size(f"{HUB}{name}/blob/main/config.json", parameters, values)


def _sizes():
    """The sizes of Bloom, and of Bloomz, which was fine-tuned from them."""
    rows = {
        "560m": (559_214_592, 24, 1024, 16),
        "1b1": (1_065_314_304, 24, 1536, 16),
        "1b7": (1_722_408_960, 24, 2048, 16),
        "3b": (3_002_557_440, 30, 2560, 32),
        "7b1": (7_069_016_064, 30, 4096, 32),
        "176b": (176_247_271_424, 70, 14336, 112),
    }
    hub = {name: "" if name == "176b" else f"-{name}" for name in rows}
    bloom = {name: _size("bloom" + hub[name], *row) for name, row in rows.items()}
    return {**bloom, **{f"bloomz-{name}": _size("bloomz" + hub[name], *row) for name, row in rows.items()}}


CARD = Family(
    name="bloom",
    architectures=("BloomForCausalLM", "BloomModel"),
    model_type="bloom",
    modeling="llmctl_bloom.modeling:BloomForCausalLM",
    paddle_prefix="bloom.",
    torch_prefix="transformer.",
    norm="layernorm",
    activation="gelu-tanh",
    position="alibi",
    settings=(
        ConfigField("layers", "n_layer", derive=_other("n_layer", "num_hidden_layers")),
        ConfigField("hidden", "hidden_size", derive=_other("hidden_size", "n_embed")),
        ConfigField("heads", "n_head", derive=_other("n_head", "num_attention_heads")),
        ConfigField("kv_heads", "", derive="heads"),
        ConfigField("head_dim", "", derive="hidden/heads"),
        ConfigField("ffn", "", derive="4*hidden"),
        ConfigField("vocab", "vocab_size"),
        ConfigField("max_positions", "seq_length", 2048),
        ConfigField("tied", "tie_word_embeddings", True),
        ConfigField("init_std", "initializer_range", 0.02),
        ConfigField("norm_eps", "layer_norm_epsilon", 1e-5),
        ConfigField("post_norm_residual", "apply_residual_connection_post_layernorm", False),
        ConfigField("hidden_dropout", "hidden_dropout", 0.0, allowed=(0, 0.0)),
        ConfigField("attention_dropout", "attention_dropout", 0.0, allowed=(0, 0.0)),
    ),
    inert=(
        "num_hidden_layers",
        "n_embed",
        "num_attention_heads",
        "n_inner",
        "offset_alibi",
        "skip_bias_add",
        "skip_bias_add_qkv",
        "slow_but_exact",
        "attention_softmax_in_fp32",
        "masked_softmax_fusion",
        "bias_dropout_fusion",
    ),  # fmt: skip
    sizes=_sizes(),
    decoder=lambda dims: {"residual_after_norm": dims.post_norm_residual},
    gguf=Gguf("bloom", words={"bloom": WORDS}, by_head=True),
    params=(
        Param("word_embeddings.weight", "vocab, hidden", kind="embed", slot="embed"),
        *norm_rows("word_embeddings_layernorm", "embed_ln"),
        *norm_rows(H + "input_layernorm", "ln"),
        *linear_rows(A + "query_key_value", "hidden, heads*3*head_dim", "qkv"),
        *linear_rows(A + "dense", "heads*head_dim, hidden", "out"),
        *norm_rows(H + "post_attention_layernorm", "ffn_ln"),
        *linear_rows(M + "dense_h_to_4h", "hidden, ffn", "ffn1"),
        *linear_rows(M + "dense_4h_to_h", "ffn, hidden", "ffn2"),
        *norm_rows("ln_f", "final_ln"),
        Param("/lm_head.weight", "hidden, vocab", slot="head", when="not tied"),
    ),
)


@hookimpl
def describe_family():
    return CARD
