"""Qwen2 and Qwen2.5: QKV biases, grouped-query attention.

https://arxiv.org/abs/2407.10671
"""

from llmctl import (
    HF_DECODER,
    HF_DECODER_ROWS,
    ConfigField,
    Family,
    Gguf,
    Param,
    TokenFacts,
    fixed_fields,
    full_attention,
    hf_decoder_fused,
    hookimpl,
    rope_rule,
    sizes,
)
from llmctl_qwen import HELPFUL, TEXT

A = "layers.{layer}.self_attn."

BIASES = tuple(
    Param(f"{A}{part}_proj.bias", f"{heads}*head_dim", slot=f"qkv_bias.{index}")
    for index, (part, heads) in enumerate((("q", "heads"), ("k", "kv_heads"), ("v", "kv_heads")))
)
SETTINGS = (
    ConfigField("norm_eps", "rms_norm_eps", 1e-6),
    ConfigField("rope_theta", "rope_theta", 10000.0),
    ConfigField("rope_scaling", "rope_scaling", None, check=rope_rule),
    *fixed_fields("silu", activation="hidden_act"),
    *fixed_fields(0, 0.0, attention_dropout="attention_dropout"),
    *fixed_fields(False, sliding="use_sliding_window"),
    ConfigField("layer_types", "layer_types", None, check=full_attention),
)
WINDOW_KEYS = ("sliding_window", "max_window_layers")  # without effect while use_sliding_window is false

CARD = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    model_type="qwen2",
    modeling="llmctl_qwen.modeling:Qwen2ForCausalLM",
    paddle_prefix="qwen2.",
    torch_prefix="model.",
    settings=(*HF_DECODER, *SETTINGS),
    inert=(*WINDOW_KEYS, "use_mrope"),
    tokens=TokenFacts(**TEXT),
    chat_template=HELPFUL,
    gguf=Gguf("qwen2", words=dict.fromkeys(("qwen2", "deepseek-r1-qwen"), TEXT["pattern"]), written=True),
    ignored_tensors=("*.rotary_emb.inv_freq",),
    paddlenlp=hf_decoder_fused,
    sizes=sizes(__file__, "qwen2"),
    params=(*HF_DECODER_ROWS, *BIASES),
)


@hookimpl
def describe_family():
    return CARD
