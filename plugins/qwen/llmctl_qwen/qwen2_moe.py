"""Qwen1.5-MoE and Qwen2-MoE: Qwen2 with mixtures of experts and a shared expert in some or all layers.

https://arxiv.org/abs/2407.10671
"""

from dataclasses import replace

from llmctl import HF_DECODER, Family, Moe, Param, Setting, Unsupported, hookimpl
from llmctl.errors import ConfigError
from llmctl_qwen import qwen2

M = "layers.{layer}.mlp."
CUT = ("expert_ffn", "shared_ffn")
SMALL = dict(expert_ffn=1408, shared_ffn=5632, experts=60, top_k=4, max_positions=8192)
LARGE = dict(expert_ffn=2560, shared_ffn=20480, experts=64, top_k=8)


def _sparse(config):
    """For each layer, whether its MLP is a mixture of experts."""
    dense, step = config.get("mlp_only_layers") or (), config.get("decoder_sparse_step") or 1
    return tuple((i + 1) % step == 0 and i not in dense for i in range(config["num_hidden_layers"]))


def _step(value):
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"decoder_sparse_step={value!r} must be a whole number above 0")


def _linears(prefix, ffn):
    ups = (Param(f"{prefix}{name}_proj.weight", f"hidden, {ffn}", shard=CUT, when="sparse") for name in ("gate", "up"))
    return (*ups, Param(prefix + "down_proj.weight", f"{ffn}, hidden", shard=CUT, when="sparse"))


CARD = Family(
    name="qwen2_moe",
    architectures=("Qwen2MoeForCausalLM",),
    model_type="qwen2_moe",
    modeling="llmctl_qwen.modeling2:Qwen2MoeForCausalLM",
    paddle_prefix="qwen2_moe.",
    torch_prefix="model.",
    moe=Moe("softmax-topk", top_k=4, renormalize=False),
    settings=(
        *HF_DECODER,
        *qwen2.SETTINGS,
        Setting("experts", "num_experts", 60),
        Setting("top_k", "num_experts_per_tok", 4),
        Setting("renormalize", "norm_topk_prob", False),
        Setting("expert_ffn", "moe_intermediate_size", 1408),
        Setting("shared_ffn", "shared_expert_intermediate_size", 5632),
        Setting("step", "decoder_sparse_step", 1, check=_step),
        Setting("dense_layers", "mlp_only_layers", derive=lambda config: []),
        Setting("sparse", "", derive=_sparse),
        Setting("balance", "output_router_logits", False),
        Setting("aux_loss", "router_aux_loss_coef", 0.001),
        Setting("qkv_bias", "qkv_bias", True, allowed=(True,)),
    ),
    inert=qwen2.WINDOW_KEYS,
    ignored_tensors=qwen2.CARD.ignored_tensors,
    tokens=qwen2.CARD.tokens,
    chat_template=qwen2.CARD.chat_template,
    claims={"fused": Unsupported("the fused decoder has no shared expert")},
    sizes={
        "qwen1.5-moe-a2.7b": qwen2.size_of("Qwen1.5-MoE-A2.7B", 14_315_784_192, 24, 2048, 16, 16, 5632, **SMALL),
        "qwen2-57b-a14b": qwen2.size_of("Qwen2-57B-A14B", 57_408_658_944, 28, 3584, 28, 4, 18944, **LARGE),
    },
    params=(
        *(replace(p, when="not sparse") if p.name.startswith(M) else p for p in qwen2.CARD.params),
        Param(M + "gate.weight", "hidden, experts", kind="router", slot="gate", when="sparse"),
        *_linears(M + "experts.{expert}.", "expert_ffn"),
        *_linears(M + "shared_expert.", "shared_ffn"),
        Param(M + "shared_expert_gate.weight", "hidden, 1", kind="router", when="sparse"),
    ),
)


@hookimpl
def describe_family():
    return CARD
