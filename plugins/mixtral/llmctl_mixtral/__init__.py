"""Mixtral: a decoder with mixtures of experts as feed-forward layers.

https://arxiv.org/abs/2401.04088
"""

from llmctl import (
    HF_DECODER,
    HF_DECODER_ROWS,
    ConfigField,
    Family,
    Gguf,
    Moe,
    Param,
    Size,
    hookimpl,
    rope_rule,
    template,
)

X = "layers.{layer}.block_sparse_moe."
MISTRALAI = "https://huggingface.co/mistralai/"
CHAT = template(__file__, "chat.jinja")

CARD = Family(
    name="mixtral",
    architectures=("MixtralForCausalLM",),
    model_type="mixtral",
    modeling="llmctl_mixtral.modeling:MixtralForCausalLM",
    paddle_prefix="mixtral.",
    torch_prefix="model.",
    moe=Moe("softmax-topk", top_k=2),
    settings=(
        *HF_DECODER,
        ConfigField("experts", "num_local_experts"),
        ConfigField("top_k", "num_experts_per_tok", 2),
        ConfigField("norm_eps", "rms_norm_eps", 1e-5),
        ConfigField("rope_theta", "rope_theta", 1e6),
        ConfigField("rope_scaling", "rope_scaling", None, check=rope_rule),
        ConfigField("window", "sliding_window", None),
        ConfigField("balance", "output_router_logits", False),
        ConfigField("aux_loss", "router_aux_loss_coef", 0.001),
        ConfigField("jitter", "router_jitter_noise", 0.0, allowed=(0, 0.0)),
        ConfigField("activation", "hidden_act", "silu", allowed=("silu",)),
        ConfigField("attention_dropout", "attention_dropout", 0.0, allowed=(0, 0.0)),
    ),
    chat_template=CHAT,
    gguf=Gguf("llama", neighbours=True, written=True),
    ignored_tensors=("*.rotary_emb.inv_freq",),
    sizes={
        "8x7b": Size(
            MISTRALAI + "Mixtral-8x7B-v0.1/blob/main/config.json",
            46_702_792_704,
            dict(layers=32, hidden=4096, heads=32, kv_heads=8, ffn=14336, vocab=32000, experts=8, max_positions=32768),
        ),
        "8x22b": Size(
            MISTRALAI + "Mixtral-8x22B-v0.1/blob/main/config.json",
            140_620_634_112,
            dict(layers=56, hidden=6144, heads=48, kv_heads=8, ffn=16384, vocab=32000, experts=8, max_positions=65536),
        ),
    },
    params=(
        *(row for row in HF_DECODER_ROWS if ".mlp." not in row.name),
        Param(X + "gate.weight", "hidden, experts", kind="router", slot="gate"),
        Param(X + "experts.{expert}.w1.weight", "hidden, ffn", slot="ffn1.0"),
        Param(X + "experts.{expert}.w3.weight", "hidden, ffn", slot="ffn1.1"),
        Param(X + "experts.{expert}.w2.weight", "ffn, hidden", slot="ffn2"),
    ),
)


@hookimpl
def describe_family():
    return CARD
