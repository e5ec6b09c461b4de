"""Qwen3 (dense): queries and keys normalised per head, no biases, a head width of its own.

https://arxiv.org/abs/2505.09388
"""

from llmctl import HF_DECODER, HF_DECODER_ROWS, Family, Param, Setting, Size, TokenFacts, hookimpl
from llmctl_qwen import CHATML, WORDS
from llmctl_qwen.qwen2 import HUB, SETTINGS, WINDOW_KEYS

A = "layers.{layer}.self_attn."


def _size(name, parameters, layers, hidden, heads, ffn, **settings):
    values = dict(layers=layers, hidden=hidden, heads=heads, kv_heads=8, ffn=ffn, vocab=151936, head_dim=128)
    values = {**values, "max_positions": 40960, "rope_theta": 1e6, **settings}
    return Size(f"{HUB}{name}/blob/main/config.json", parameters, values)


CARD = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    model_type="qwen3",
    modeling="llmctl_qwen.modeling2:Qwen3ForCausalLM",
    paddle_prefix="qwen3.",
    torch_prefix="model.",
    settings=(*HF_DECODER, *SETTINGS, Setting("attention_bias", "attention_bias", False, allowed=(False,))),
    inert=WINDOW_KEYS,
    tokens=TokenFacts(pattern=WORDS, normal_form="NFC", ends=("<|im_end|>",)),
    chat_template=CHATML,
    ignored_tensors=("*.rotary_emb.inv_freq",),
    sizes={
        "0.6b": _size("Qwen3-0.6B", 596_049_920, 28, 1024, 16, 3072, tied=True),
        "1.7b": _size("Qwen3-1.7B", 1_720_574_976, 28, 2048, 16, 6144, tied=True),
        "4b": _size("Qwen3-4B", 4_022_468_096, 36, 2560, 32, 9728, tied=True),
        "8b": _size("Qwen3-8B", 8_190_735_360, 36, 4096, 32, 12288),
        "14b": _size("Qwen3-14B", 14_768_307_200, 40, 5120, 40, 17408),
        "32b": _size("Qwen3-32B", 32_762_123_264, 64, 5120, 64, 25600),
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
