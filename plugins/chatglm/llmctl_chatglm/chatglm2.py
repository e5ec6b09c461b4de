"""ChatGLM2 and ChatGLM3: a causal decoder with two key-value groups and rotations of half of each head.

https://github.com/THUDM/ChatGLM2-6B and https://github.com/THUDM/ChatGLM3
"""

from pathlib import Path

from llmctl import Family, Param, Setting, Size, TokenFacts, hookimpl, linear_rows
from llmctl.errors import ConfigError
from llmctl.hookspecs import Part
from llmctl.renames import Piece, by_module, one_after_another

L, A, M = "encoder.layers.{layer}.", "encoder.layers.{layer}.self_attention.", "encoder.layers.{layer}.mlp."
QKV = "heads*head_dim + kv_heads*head_dim + kv_heads*head_dim"
HUB = "https://huggingface.co/THUDM/"
# https://huggingface.co/THUDM/chatglm3-6b/blob/main/tokenization_chatglm.py: names after those of the file.
TOKENS = TokenFacts(
    appended=("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"),
    optional=("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    roles={"eos": "</s>", "pad": "<unk>", "unk": "<unk>"},
    prefix=("[gMASK]", "sop"),
    ends=("<|user|>", "<|observation|>"),
)
SIX = dict(layers=28, hidden=4096, heads=32, kv_heads=2, head_dim=128, ffn=13696, vocab=65024)


def _ratio(value):
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ConfigError(f"rope_ratio={value!r} must be a number above 0")


def _ratio_of(config):
    """What ``rope_ratio`` stretches. The releases for long contexts differ without saying so in config.json."""
    ratio = config.get("rope_ratio")
    if ratio not in (None, 1):
        raise ConfigError(
            f"rope_ratio={ratio} multiplies the base of the rotations in ChatGLM3 and divides positions in ChatGLM2; "
            'add "rope_ratio_of": "base" or "rope_ratio_of": "positions"'
        )
    return "base"


CARD = Family(
    name="chatglm2",
    architectures=("ChatGLMModel", "ChatGLMForConditionalGeneration"),
    recognise=lambda config: "multi_query_attention" in config,
    model_type="chatglm",
    modeling="llmctl_chatglm.modeling2:ChatGLM2ForCausalLM",
    paddle_prefix="chatglm2.",
    torch_prefix="transformer.",
    position="rope-half-interleaved",
    settings=(
        Setting("layers", "num_layers"),
        Setting("hidden", "hidden_size"),
        Setting("heads", "num_attention_heads"),
        Setting("kv_heads", "multi_query_group_num"),
        Setting("head_dim", "kv_channels", derive="hidden/heads"),
        Setting("ffn", "ffn_hidden_size"),
        Setting("vocab", "padded_vocab_size"),
        Setting("max_positions", "seq_length", 2048),
        Setting("tied", "tie_word_embeddings", False, allowed=(False,)),
        Setting("init_std", "initializer_range", 0.02),
        Setting("norm_eps", "layernorm_epsilon", 1e-5),
        Setting("grouped", "multi_query_attention", True, allowed=(True,)),
        Setting("rms", "rmsnorm", True, allowed=(True,)),
        Setting("final_norm", "post_layer_norm", True, allowed=(True,)),
        Setting("bias", "add_bias_linear", False, allowed=(False,)),
        Setting("qkv_bias", "add_qkv_bias", True, allowed=(True,)),
        Setting("post_norm_residual", "apply_residual_connection_post_layernorm", False, allowed=(False,)),
        Setting("first_rope", "original_rope", True, allowed=(True,)),
        Setting("rope_ratio", "rope_ratio", 1, check=_ratio),
        Setting("rope_ratio_of", "rope_ratio_of", derive=_ratio_of, allowed=("base", "positions")),
        Setting("interleaved", "interleaved_qkv", False, allowed=(False,)),
        Setting("hidden_dropout", "hidden_dropout", 0.0, allowed=(0, 0.0)),
        Setting("attention_dropout", "attention_dropout", 0.0, allowed=(0, 0.0)),
        Setting("quantised", "quantization_bit", 0, allowed=(0,)),
        Setting("prefix_projection", "prefix_projection", False, allowed=(False,)),
    ),
    # The layer's number is multiplied into scores and divided out again; the others choose kernels of the original.
    inert=(
        "apply_query_key_layer_scaling",
        "attention_softmax_in_fp32",
        "bias_dropout_fusion",
        "fp32_residual_connection",
        "vocab_size",
        "classifier_dropout",
    ),  # fmt: skip
    tokens=TOKENS,
    chat_template=Path(__file__).with_name("chat2.jinja").read_text(encoding="utf-8"),
    ignored_tensors=("*rotary_pos_emb.inv_freq",),
    sizes={
        "chatglm2-6b": Size(
            HUB + "chatglm2-6b/blob/main/config.json", 6_243_584_000, dict(SIX, max_positions=32768, grouped=True)
        ),
        "chatglm3-6b": Size(
            HUB + "chatglm3-6b/blob/main/config.json", 6_243_584_000, dict(SIX, max_positions=8192, grouped=True)
        ),
        "chatglm3-6b-32k": Size(
            HUB + "chatglm3-6b-32k/blob/main/config.json",
            6_243_584_000,
            dict(SIX, max_positions=32768, grouped=True, rope_ratio=50, rope_ratio_of="base"),
        ),
    },
    params=(
        Param("embedding.word_embeddings.weight", "vocab, hidden", kind="embed"),
        Param(L + "input_layernorm.weight", "hidden", kind="norm", slot="ln"),
        *linear_rows(A + "query_key_value", "hidden, " + QKV, "qkv"),
        Param(A + "dense.weight", "heads*head_dim, hidden", slot="out"),
        Param(L + "post_attention_layernorm.weight", "hidden", kind="norm", slot="ffn_ln"),
        Param(M + "dense_h_to_4h.weight", "hidden, 2*ffn", slot="ffn1"),
        Param(M + "dense_4h_to_h.weight", "ffn, hidden", slot="ffn2"),
        Param("encoder.final_layernorm.weight", "hidden", kind="norm"),
        Param("/lm_head.weight", "hidden, vocab", torch="output_layer.weight"),
    ),
)


@hookimpl
def describe_family():
    return CARD


def _paddlenlp(dims):
    """Files of some releases hold queries, keys and values apart, and gate and up channel by channel."""
    qkv = one_after_another(dims.heads, dims.kv_heads, dims.kv_heads)
    apart = [
        Piece(A + name, place=part, way="apart") for name, part in zip(("query", "key", "value"), qkv, strict=True)
    ]
    up, halves = M + "dense_h_to_4h", one_after_another(1, 1)
    channels = [Piece(up, Part(i, i + 1, 2, dims.ffn), halves[i], way="apart") for i in range(2)]
    packed = A + "query_key_value"
    return {"/lm_head": "output_layer", packed: [Piece(packed), *apart], up: [Piece(up), *channels]}


@hookimpl
def weight_map(card, dims, source):
    if source == "paddlenlp":
        return by_module(card, dims, _paddlenlp(dims), "chatglm_v2.")
    return None
