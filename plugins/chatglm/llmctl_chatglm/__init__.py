"""ChatGLM-6B: a prefix-LM (bidirectional attention in the prompt) with 2-D positions and scaled residuals.

https://arxiv.org/abs/2103.10360. ChatGLM2 and ChatGLM3 are a card of their own.
"""

from struct import pack, unpack

from llmctl import (
    ConfigField,
    Family,
    ModuleMapping,
    Param,
    PrefixLM,
    RopeRule,
    TokenFacts,
    Unsupported,
    fixed_fields,
    hookimpl,
    linear_rows,
    norm_rows,
    required_fields,
    rope_frequencies,
    rope_spec,
    sizes,
    template,
)

L, A, M = "layers.{layer}.", "layers.{layer}.attention.", "layers.{layer}.mlp."
SETTINGS = (  # Of all generations, as are the names.
    *required_fields(layers="num_layers", hidden="hidden_size", heads="num_attention_heads"),
    *fixed_fields(False, tied="tie_word_embeddings", prefix_projection="prefix_projection"),
    *fixed_fields(0, quantised="quantization_bit"),
    ConfigField("init_std", "initializer_range", 0.02),
    ConfigField("norm_eps", "layernorm_epsilon", 1e-5),
)
NAMES = dict(architectures=("ChatGLMModel", "ChatGLMForConditionalGeneration"), model_type="chatglm")
THETA = 10000.0
RESIDUAL_SCALE = (2 * 28) ** 0.5  # The original takes 28 layers whatever the depth.
HALF = {"rope_type": "float16"}  # The original holds frequencies in float16.
RULES = {"float16": RopeRule(lambda *given: [unpack("e", pack("e", f))[0] for f in rope_frequencies(*given)])}


def prefix_lm(dims):
    """A document is ``... [gMASK] ... <bos> answer``: everything before ``<bos>`` is the prefix."""
    return PrefixLM(end=dims.bos, mask_ids=(dims.gmask, dims.mask))


def _decoder(dims):
    rotary = rope_spec(dims, HALF, RULES, theta=THETA, pairs="2d")
    return dict(rope=rotary, prefix_lm=prefix_lm(dims), residual_after_norm=True, residual_scale=RESIDUAL_SCALE)


CARD = Family(
    name="chatglm",
    **NAMES,
    recognise=lambda config: "multi_query_group_num" not in config,
    modeling="llmctl_chatglm.modeling:ChatGLMForCausalLM",
    paddle_prefix="chatglm.",
    torch_prefix="transformer.",
    norm="layernorm",
    activation="gelu-tanh",
    position="rope-2d",
    settings=(
        *SETTINGS,
        ConfigField("kv_heads", "", derive="heads"),
        ConfigField("head_dim", "", derive="hidden/heads"),
        ConfigField("ffn", "inner_hidden_size", derive="4*hidden"),
        ConfigField("max_positions", "max_sequence_length", 2048),
        *required_fields(vocab="vocab_size", bos="bos_token_id", mask="mask_token_id", gmask="gmask_token_id"),
        *fixed_fields(True, two_dimensions="position_encoding_2d"),
    ),
    # https://huggingface.co/THUDM/chatglm-6b/blob/main/tokenization_chatglm.py: pieces for white space, ids of image
    # tokens before those of text, two tokens between a prompt and its answer.
    tokens=TokenFacts(
        model="ice_text.model",
        written=(("\n", "<n>"), ("\t", "<|tab|>"), *((" " * n, f"<|blank_{n}|>") for n in range(80, 1, -1))),
        offset=("num_image_tokens", 20000),
        roles={"bos": "<sop>", "eos": "<eop>"},
        bridge=("[gMASK]", "<sop>"),
    ),
    chat_template=template(__file__, "chat.jinja"),
    claims={"pretrain": Unsupported("rows need [gMASK] and <bos> between prefix and answer; corpora have none")},
    ignored_tensors=("*.rotary_emb.inv_freq",),
    paddlenlp=lambda dims: {"/lm_head": [ModuleMapping("word_embeddings", transpose=True)]},
    paddlenlp_prefix="chatglm.transformer.",
    decoder=_decoder,
    sizes=sizes(__file__, "chatglm"),
    params=(
        Param("word_embeddings.weight", "vocab, hidden", kind="embed", slot="embed"),
        *norm_rows(L + "input_layernorm", "ln"),
        *linear_rows(A + "query_key_value", "hidden, heads*3*head_dim", "qkv"),
        *linear_rows(A + "dense", "heads*head_dim, hidden", "out"),
        *norm_rows(L + "post_attention_layernorm", "ffn_ln"),
        *linear_rows(M + "dense_h_to_4h", "hidden, ffn", "ffn1"),
        *linear_rows(M + "dense_4h_to_h", "ffn, hidden", "ffn2"),
        *norm_rows("final_layernorm", "final_ln"),
        Param("/lm_head.weight", "hidden, vocab", slot="head"),
    ),
)


@hookimpl
def describe_family():
    return CARD
