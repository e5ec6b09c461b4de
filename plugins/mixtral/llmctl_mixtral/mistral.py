"""Mistral: a dense decoder with grouped-query attention and, in its first release, a sliding window.

https://arxiv.org/abs/2310.06825
"""

from llmctl import HF_DECODER, HF_DECODER_ROWS, ConfigField, Family, Size, TokenFacts, hookimpl, rope_rule
from llmctl_mixtral import CHAT

MISTRALAI = "https://huggingface.co/mistralai/"
SMALL = dict(layers=32, hidden=4096, heads=32, kv_heads=8, ffn=14336, max_positions=32768)


def _window(config):
    """In the first release an absent key means a window of 4096; null means no window."""
    return None if "sliding_window" in config else 4096


CARD = Family(
    name="mistral",
    architectures=("MistralForCausalLM",),
    model_type="mistral",
    modeling="llmctl_mixtral.modeling:MistralForCausalLM",
    paddle_prefix="mistral.",
    torch_prefix="model.",
    settings=(
        *HF_DECODER,
        ConfigField("norm_eps", "rms_norm_eps", 1e-6),
        ConfigField("rope_theta", "rope_theta", 10000.0),
        ConfigField("rope_scaling", "rope_scaling", None, check=rope_rule),
        ConfigField("window", "sliding_window", derive=_window),
        ConfigField("activation", "hidden_act", "silu", allowed=("silu",)),
        ConfigField("attention_dropout", "attention_dropout", 0.0, allowed=(0, 0.0)),
    ),
    tokens=TokenFacts(calls="listed"),
    chat_template=CHAT,
    ignored_tensors=("*.rotary_emb.inv_freq",),
    sizes={
        "7b-v0.1": Size(
            MISTRALAI + "Mistral-7B-v0.1/blob/main/config.json",
            7_241_732_096,
            dict(SMALL, vocab=32000, window=4096, norm_eps=1e-5),
        ),
        "7b-v0.2": Size(
            MISTRALAI + "Mistral-7B-Instruct-v0.2/blob/main/config.json",
            7_241_732_096,
            dict(SMALL, vocab=32000, window=None, rope_theta=1e6, norm_eps=1e-5),
        ),
        "7b-v0.3": Size(
            MISTRALAI + "Mistral-7B-v0.3/blob/main/config.json",
            7_248_023_552,
            dict(SMALL, vocab=32768, window=None, rope_theta=1e6, norm_eps=1e-5),
        ),
        "nemo": Size(
            MISTRALAI + "Mistral-Nemo-Base-2407/blob/main/config.json",
            12_247_782_400,
            dict(
                SMALL,
                layers=40,
                hidden=5120,
                head_dim=128,
                vocab=131072,
                window=None,
                rope_theta=1e6,
                norm_eps=1e-5,
                max_positions=128000,
            ),
        ),
    },
    params=HF_DECODER_ROWS,
)


@hookimpl
def describe_family():
    return CARD
