"""GPT-3, in the layout of GPT-2's checkpoints: learned positions, packed QKV stored [in, out], mostly a tied output head.

https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf and
https://arxiv.org/abs/2005.14165
"""

from llmctl import (
    ConfigField,
    Family,
    Gguf,
    ModuleMapping,
    Param,
    Size,
    contiguous_slices,
    grouped_qkv_slices,
    hookimpl,
    linear_rows,
    norm_rows,
)

H, A, M = "h.{layer}.", "h.{layer}.attn.", "h.{layer}.mlp."
HUB = "https://huggingface.co/openai-community/"
PAPER = "https://arxiv.org/abs/2005.14165"
VOCAB = 50257
CONV = dict(torch_layout="same")


def _gpt2(name, parameters, layers, hidden, heads):
    values = dict(layers=layers, hidden=hidden, heads=heads, vocab=VOCAB, max_positions=1024)
    return Size(f"{HUB}{name}/blob/main/config.json", parameters, values)


def _gpt3(parameters, layers, hidden, heads, **more):
    values = dict(layers=layers, hidden=hidden, heads=heads, vocab=VOCAB, max_positions=2048, **more)
    return Size(PAPER, parameters, values)


D = "decoder.layers.{layer}."
PADDLENLP = {
    "wte": "embeddings.word_embeddings",
    "wpe": "embeddings.position_embeddings",
    H + "ln_1": D + "norm1",
    A + "c_proj": D + "self_attn.out_proj",
    H + "ln_2": D + "norm2",
    M + "c_fc": D + "linear1",
    M + "c_proj": D + "linear2",
    "ln_f": "decoder.norm",
}
"""Names of modules in PaddleNLP."""


def _paddlenlp(dims):
    """Queries, keys and values are split, or fused and interleaved per head."""
    slices, fused = contiguous_slices(1, 1, 1), D + "self_attn.qkv_proj"
    split = [
        ModuleMapping(D + f"self_attn.{name}_proj", dst_slice=dst_slice)
        for name, dst_slice in zip("qkv", slices, strict=True)
    ]
    heads = [
        ModuleMapping(fused, *where, variant="fused") for where in zip(grouped_qkv_slices(dims), slices, strict=True)
    ]
    return {**PADDLENLP, A + "c_attn": split + heads}


def score_scale(dims, layer):
    """Scale of a layer's attention scores; they may also be divided by the layer's number, or not scaled."""
    return (dims.head_dim**-0.5 if dims.scaled else 1.0) / (layer + 1 if dims.scaled_by_layer else 1)


CARD = Family(
    name="gpt3",
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    model_type="gpt2",
    modeling="llmctl_gpt3.modeling:GPTForCausalLM",
    paddle_prefix="gpt.",
    torch_prefix="transformer.",
    norm="layernorm",
    activation="gelu-tanh",
    position="learned",
    settings=(
        ConfigField("layers", "n_layer"),
        ConfigField("hidden", "n_embd"),
        ConfigField("heads", "n_head"),
        ConfigField("kv_heads", "", derive="heads"),
        ConfigField("head_dim", "", derive="hidden/heads"),
        ConfigField("ffn", "n_inner", derive="4*hidden"),
        ConfigField("vocab", "vocab_size"),
        ConfigField("max_positions", "n_positions", 1024),
        ConfigField("tied", "tie_word_embeddings", True),
        ConfigField("init_std", "initializer_range", 0.02),
        ConfigField("norm_eps", "layer_norm_epsilon", 1e-5),
        ConfigField("activation", "activation_function", "gelu_new", allowed=("gelu_new", "gelu_pytorch_tanh")),
        ConfigField("scaled", "scale_attn_weights", True),
        ConfigField("scaled_by_layer", "scale_attn_by_inverse_layer_idx", False),
        ConfigField("embedding_dropout", "embd_pdrop", 0.1),
        ConfigField("attention_dropout", "attn_pdrop", 0.1),
        ConfigField("residual_dropout", "resid_pdrop", 0.1),
    ),
    # Scores are always computed in float32 or better; the summary head belongs to other models of the original code. The
    # last three are in gpt2-medium, -large and -xl; no release of transformers reads them.
    inert=(
        "reorder_and_upcast_attn",
        "n_ctx",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
        "predict_special_tokens",
        "output_past",
        "n_special",
    ),  # fmt: skip
    ignored_tensors=("*.attn.bias", "*.attn.masked_bias"),
    paddlenlp=_paddlenlp,
    gguf=Gguf("gpt2"),
    decoder=lambda dims: {"score_scales": tuple(score_scale(dims, layer) for layer in range(dims.layers))},
    sizes={
        "gpt2": _gpt2("gpt2", 124_439_808, 12, 768, 12),
        "gpt2-medium": _gpt2("gpt2-medium", 354_823_168, 24, 1024, 16),
        "gpt2-large": _gpt2("gpt2-large", 774_030_080, 36, 1280, 20),
        "gpt2-xl": _gpt2("gpt2-xl", 1_557_611_200, 48, 1600, 25),
        "gpt3-1.3b": _gpt3(1_315_723_264, 24, 2048, 16),
        "gpt3-6.7b": _gpt3(6_658_404_352, 32, 4096, 32),
        "gpt3-13b": _gpt3(12_853_386_240, 40, 5120, 40),
        "gpt3-175b": _gpt3(174_604_259_328, 96, 12288, 96),
    },
    params=(
        Param("wte.weight", "vocab, hidden", kind="embed", slot="embed"),
        Param("wpe.weight", "max_positions, hidden", kind="embed", slot="positions"),
        *norm_rows(H + "ln_1", "ln"),
        *linear_rows(A + "c_attn", "hidden, 3*heads*head_dim", "qkv", **CONV),
        *linear_rows(A + "c_proj", "heads*head_dim, hidden", "out", **CONV),
        *norm_rows(H + "ln_2", "ffn_ln"),
        *linear_rows(M + "c_fc", "hidden, ffn", "ffn1", **CONV),
        *linear_rows(M + "c_proj", "ffn, hidden", "ffn2", **CONV),
        *norm_rows("ln_f", "final_ln"),
        Param("/lm_head.weight", "hidden, vocab", slot="head", when="not tied"),
    ),
)


@hookimpl
def describe_family():
    return CARD
