"""Qwen3 (dense): queries and keys normalised per head, no biases, a head width of its own.

https://arxiv.org/abs/2505.09388
"""

from llmctl import HF_DECODER, HF_DECODER_ROWS, Family, Param, Setting, TokenFacts, hookimpl
from llmctl_qwen import CHATML, CUT
from llmctl_qwen.qwen2 import SETTINGS, WINDOW_KEYS, size_of

A = "layers.{layer}.self_attn."
WIDE = dict(head_dim=128, max_positions=40960)

CARD = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    model_type="qwen3",
    modeling="llmctl_qwen.modeling:Qwen3ForCausalLM",
    paddle_prefix="qwen3.",
    torch_prefix="model.",
    settings=(*HF_DECODER, *SETTINGS, Setting("attention_bias", "attention_bias", False, allowed=(False,))),
    inert=WINDOW_KEYS,
    tokens=TokenFacts(**CUT),
    chat_template=CHATML,
    ignored_tensors=("*.rotary_emb.inv_freq",),
    sizes={
        "0.6b": size_of("Qwen3-0.6B", 596_049_920, 28, 1024, 16, 8, 3072, tied=True, **WIDE),
        "1.7b": size_of("Qwen3-1.7B", 1_720_574_976, 28, 2048, 16, 8, 6144, tied=True, **WIDE),
        "4b": size_of("Qwen3-4B", 4_022_468_096, 36, 2560, 32, 8, 9728, tied=True, **WIDE),
        "8b": size_of("Qwen3-8B", 8_190_735_360, 36, 4096, 32, 8, 12288, **WIDE),
        "14b": size_of("Qwen3-14B", 14_768_307_200, 40, 5120, 40, 8, 17408, **WIDE),
        "32b": size_of("Qwen3-32B", 32_762_123_264, 64, 5120, 64, 8, 25600, **WIDE),
    },
    params=(
        *HF_DECODER_ROWS,
        Param(A + "q_norm.weight", "head_dim", kind="norm", slot="q_norm"),
        Param(A + "k_norm.weight", "head_dim", kind="norm", slot="k_norm"),
    ),
)


@hookimpl
def describe_family():
    return CARD
