"""Qwen3 (dense): RMSNorm on each head of queries and keys, mostly no biases, a head_dim of its own.

https://arxiv.org/abs/2505.09388
"""

from dataclasses import replace

from llmctl import HF_DECODER, HF_DECODER_ROWS, ConfigField, Family, Gguf, Param, TokenFacts, hookimpl, sizes
from llmctl_qwen import CHATML, TEXT
from llmctl_qwen.qwen2 import BIASES, SETTINGS, WINDOW_KEYS, A

CARD = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    model_type="qwen3",
    modeling="llmctl_qwen.modeling:Qwen3ForCausalLM",
    paddle_prefix="qwen3.",
    torch_prefix="model.",
    settings=(*HF_DECODER, *SETTINGS, ConfigField("attention_bias", "attention_bias", False)),
    inert=WINDOW_KEYS,
    tokens=TokenFacts(**TEXT, thoughts=("<think>", "</think>")),
    chat_template=CHATML,
    gguf=Gguf("qwen3", words={"qwen2": TEXT["pattern"]}, written=True),
    ignored_tensors=("*.rotary_emb.inv_freq",),
    sizes=sizes(__file__, "qwen3"),
    params=(
        *HF_DECODER_ROWS,
        *(Param(f"{A}{part}_norm.weight", "head_dim", kind="norm", slot=f"{part}_norm") for part in "qk"),
        *(replace(row, when="attention_bias") for row in BIASES),
        Param(A + "o_proj.bias", "hidden", slot="out_bias", when="attention_bias"),
    ),
)


@hookimpl
def describe_family():
    return CARD
