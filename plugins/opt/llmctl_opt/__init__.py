"""OPT: learned positions that begin at 2, ReLU, mostly a tied output head; the 350M model is post-norm.

https://arxiv.org/abs/2205.01068
"""

from dataclasses import replace

from llmctl import (
    ConfigField,
    Family,
    ModuleMapping,
    Param,
    Size,
    TokenFacts,
    grouped_qkv_slices,
    hookimpl,
    linear_rows,
    norm_rows,
)

L, A = "layers.{layer}.", "layers.{layer}.self_attn."
HUB = "https://huggingface.co/facebook/"
FIRST_POSITION = 2
"""Row of the position table for the first token; padding uses the row before it."""


def _size(name, parameters, layers, hidden, heads, **settings):
    values = dict(layers=layers, hidden=hidden, heads=heads, ffn=4 * hidden, vocab=50272, max_positions=2048)
    return Size(f"{HUB}{name}/blob/main/config.json", parameters, {"embed": hidden, **values, **settings})


def _projected(config):
    """Whether token embeddings are narrower or wider than the hidden size."""
    return config.get("word_embed_proj_dim") not in (None, config["hidden_size"])


def _final_norm(config):
    """Pre-norm models have a final norm, unless an early conversion removed it."""
    before = config.get("do_layer_norm_before", config.get("normalize_before", True))
    return before and not config.get("_remove_final_layer_norm", False)


D = "decoder.layers.{layer}."
PADDLENLP = {
    "embed_tokens": "embeddings.word_embeddings",
    "embed_positions": "embeddings.position_embeddings",
    "project_in": "embeddings.project_in",
    "project_out": "decoder.project_out",
    A + "out_proj": D + "self_attn.out_proj",
    L + "self_attn_layer_norm": D + "norm1",
    L + "fc1": D + "linear1",
    L + "fc2": D + "linear2",
    L + "final_layer_norm": D + "norm2",
    "final_layer_norm": "decoder.final_layer_norm",
}
"""Names of modules in PaddleNLP."""


def _paddlenlp(dims):
    """Queries, keys and values are split, or fused and interleaved per head."""
    fused = zip("qkv", grouped_qkv_slices(dims), strict=True)
    qkv = {A + f"{name}_proj": (ModuleMapping(D + f"self_attn.{name}_proj"), ModuleMapping(D + "self_attn.qkv_proj", part, variant="fused"))
           for name, part in fused}  # fmt: skip
    return {**PADDLENLP, **qkv}


CARD = Family(
    name="opt",
    architectures=("OPTForCausalLM", "OPTModel"),
    model_type="opt",
    modeling="llmctl_opt.modeling:OPTForCausalLM",
    paddle_prefix="opt.",
    torch_prefix="model.decoder.",
    norm="layernorm",
    activation="relu",
    position="learned",
    settings=(
        ConfigField("layers", "num_hidden_layers"),
        ConfigField("hidden", "hidden_size"),
        ConfigField("heads", "num_attention_heads"),
        ConfigField("kv_heads", "", derive="heads"),
        ConfigField("head_dim", "", derive="hidden/heads"),
        ConfigField("ffn", "ffn_dim", aliases=("intermediate_size",)),
        ConfigField("vocab", "vocab_size"),
        ConfigField("max_positions", "max_position_embeddings", 2048),
        ConfigField("embed", "word_embed_proj_dim", derive="hidden"),
        ConfigField("projected", "", derive=_projected),
        ConfigField("norm_before", "do_layer_norm_before", True, aliases=("normalize_before",)),
        ConfigField("final_norm_removed", "_remove_final_layer_norm", False),
        ConfigField("final_norm", "", derive=_final_norm),
        ConfigField("tied", "tie_word_embeddings", True),
        ConfigField("init_std", "init_std", 0.02),
        ConfigField("norm_affine", "layer_norm_elementwise_affine", True, allowed=(True,)),
        ConfigField("bias", "enable_bias", True),
        ConfigField("activation", "activation_function", "relu", allowed=("relu",), aliases=("hidden_act",)),
        ConfigField("dropout", "dropout", 0.1, aliases=("hidden_dropout_prob",)),
        ConfigField("attention_dropout", "attention_dropout", 0.0, aliases=("attention_probs_dropout_prob",)),
        ConfigField("activation_dropout", "activation_dropout", 0.0, allowed=(0, 0.0)),
        ConfigField("layer_drop", "layerdrop", 0.0, allowed=(0, 0.0)),
    ),
    inert=("initializer_range", "type_vocab_size"),
    tokens=TokenFacts(prefix=("</s>",)),
    paddlenlp=_paddlenlp,
    decoder=lambda dims: {"position_offset": FIRST_POSITION, "norm_after": not dims.norm_before},
    sizes={
        "125m": _size("opt-125m", 125_239_296, 12, 768, 12),
        "350m": _size("opt-350m", 331_196_416, 24, 1024, 16, embed=512, norm_before=False),
        "1.3b": _size("opt-1.3b", 1_315_758_080, 24, 2048, 32),
        "2.7b": _size("opt-2.7b", 2_651_596_800, 32, 2560, 32),
        "6.7b": _size("opt-6.7b", 6_658_473_984, 32, 4096, 32),
        "13b": _size("opt-13b", 12_853_473_280, 40, 5120, 40),
        "30b": _size("opt-30b", 29_974_540_288, 48, 7168, 56),
        "66b": _size("opt-66b", 65_719_701_504, 64, 9216, 72),
        "175b": replace(_size("", 174_604_468_224, 96, 12288, 96), source="https://arxiv.org/abs/2205.01068"),
    },
    params=(
        Param("embed_tokens.weight", "vocab, embed", kind="embed", slot="embed"),
        Param("embed_positions.weight", "max_positions + 2, hidden", kind="embed", slot="positions"),
        Param("project_in.weight", "embed, hidden", slot="project_in", when="projected"),
        Param("project_out.weight", "hidden, embed", slot="project_out", when="projected"),
        *linear_rows(A + "q_proj", "hidden, heads*head_dim", "qkv.0", bias_when="bias"),
        *linear_rows(A + "k_proj", "hidden, heads*head_dim", "qkv.1", bias_when="bias"),
        *linear_rows(A + "v_proj", "hidden, heads*head_dim", "qkv.2", bias_when="bias"),
        *linear_rows(A + "out_proj", "heads*head_dim, hidden", "out", bias_when="bias"),
        *norm_rows(L + "self_attn_layer_norm", "ln"),
        *linear_rows(L + "fc1", "hidden, ffn", "ffn1", bias_when="bias"),
        *linear_rows(L + "fc2", "ffn, hidden", "ffn2", bias_when="bias"),
        *norm_rows(L + "final_layer_norm", "ffn_ln"),
        *norm_rows("final_layer_norm", "final_ln", when="final_norm"),
        Param("/lm_head.weight", "embed, vocab", slot="head", when="not tied"),
    ),
)


@hookimpl
def describe_family():
    return CARD
