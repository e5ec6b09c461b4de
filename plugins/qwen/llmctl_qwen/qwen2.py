"""Qwen2 and Qwen2.5: biases on queries, keys and values, grouped-query attention.

https://arxiv.org/abs/2407.10671
"""

from llmctl import HF_DECODER, HF_DECODER_ROWS, Family, Param, Setting, Size, TokenFacts, hookimpl
from llmctl.errors import ConfigError
from llmctl.nn.frequencies import rule_for
from llmctl.renames import hf_decoder_fused
from llmctl.rows import fixed_settings
from llmctl_qwen import CUT, HELPFUL, HUB

A = "layers.{layer}.self_attn."


def size_of(name, parameters, layers, hidden, heads, kv_heads, ffn, vocab=151936, **settings):
    values = dict(layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, ffn=ffn, vocab=vocab)
    values = {**values, "max_positions": 131072, "rope_theta": 1e6, "norm_eps": 1e-6, **settings}
    return Size(f"{HUB}{name}/blob/main/config.json", parameters, values)


def full_attention(kinds):
    """Passes when every layer attends to everything before it."""
    if any(kind != "full_attention" for kind in kinds):
        raise ConfigError(f"layer_types={kinds!r} is not supported; every layer must be 'full_attention'")


SETTINGS = (
    Setting("norm_eps", "rms_norm_eps", 1e-6),
    Setting("rope_theta", "rope_theta", 10000.0),
    Setting("rope_scaling", "rope_scaling", None, check=rule_for),
    *fixed_settings("silu", activation="hidden_act"),
    *fixed_settings(0, 0.0, attention_dropout="attention_dropout"),
    *fixed_settings(False, sliding="use_sliding_window"),
    Setting("layer_types", "layer_types", None, check=full_attention),
)
WINDOW_KEYS = ("sliding_window", "max_window_layers")
"""Without effect while use_sliding_window is false."""

CARD = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    model_type="qwen2",
    modeling="llmctl_qwen.modeling:Qwen2ForCausalLM",
    paddle_prefix="qwen2.",
    torch_prefix="model.",
    settings=(*HF_DECODER, *SETTINGS),
    inert=(*WINDOW_KEYS, "use_mrope"),
    tokens=TokenFacts(**CUT),
    chat_template=HELPFUL,
    ignored_tensors=("*.rotary_emb.inv_freq",),
    paddlenlp=hf_decoder_fused,
    sizes={
        "qwen2-0.5b": size_of("Qwen2-0.5B", 494_032_768, 24, 896, 14, 2, 4864, tied=True),
        "qwen2-1.5b": size_of("Qwen2-1.5B", 1_543_714_304, 28, 1536, 12, 2, 8960, tied=True),
        "qwen2-7b": size_of("Qwen2-7B", 7_615_616_512, 28, 3584, 28, 4, 18944, 152064),
        "qwen2-72b": size_of("Qwen2-72B", 72_706_203_648, 80, 8192, 64, 8, 29568, 152064, norm_eps=1e-5),
        "qwen2.5-0.5b": size_of("Qwen2.5-0.5B", 494_032_768, 24, 896, 14, 2, 4864, tied=True, max_positions=32768),
        "qwen2.5-1.5b": size_of("Qwen2.5-1.5B", 1_543_714_304, 28, 1536, 12, 2, 8960, tied=True),
        "qwen2.5-3b": size_of("Qwen2.5-3B", 3_085_938_688, 36, 2048, 16, 2, 11008, tied=True, max_positions=32768),
        "qwen2.5-7b": size_of("Qwen2.5-7B", 7_615_616_512, 28, 3584, 28, 4, 18944, 152064),
        "qwen2.5-14b": size_of("Qwen2.5-14B", 14_770_033_664, 48, 5120, 40, 8, 13824, 152064, norm_eps=1e-5),
        "qwen2.5-32b": size_of("Qwen2.5-32B", 32_763_876_352, 64, 5120, 40, 8, 27648, 152064, norm_eps=1e-5),
        "qwen2.5-72b": size_of("Qwen2.5-72B", 72_706_203_648, 80, 8192, 64, 8, 29568, 152064, norm_eps=1e-5),
    },
    params=(
        *HF_DECODER_ROWS,
        Param(A + "q_proj.bias", "heads*head_dim", slot="qkv_bias.0"),
        Param(A + "k_proj.bias", "kv_heads*head_dim", slot="qkv_bias.1"),
        Param(A + "v_proj.bias", "kv_heads*head_dim", slot="qkv_bias.2"),
    ),
)


@hookimpl
def describe_family():
    return CARD
