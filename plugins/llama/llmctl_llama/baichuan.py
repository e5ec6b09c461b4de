"""Baichuan and Baichuan2: the 7B models with RoPE, the 13B models with ALiBi; files have packed QKV.

https://arxiv.org/abs/2309.10305 and https://github.com/baichuan-inc/Baichuan-7B
"""

from dataclasses import replace

from llmctl import (
    HF_DECODER,
    HF_DECODER_ROWS,
    ConfigField,
    Family,
    Gguf,
    Size,
    TokenFacts,
    WeightMapping,
    alibi_slopes,
    contiguous_slices,
    hf_decoder_fused,
    hookimpl,
    rope_spec,
    template,
)

PACKED = "layers.{layer}.self_attn.W_pack.weight"
HUB = "https://huggingface.co/baichuan-inc/"
SMALL = dict(layers=32, hidden=4096, heads=32, ffn=11008, max_positions=4096, norm_eps=1e-6)
LARGE = dict(layers=40, hidden=5120, heads=40, ffn=13696, trained=4096, norm_eps=1e-6)
VOCAB2 = 125_696  # Of the second generation.
SMALL2, LARGE2 = dict(SMALL, vocab=VOCAB2), dict(LARGE, vocab=VOCAB2)


def _kind(config):
    """Models with RoPE have the key ``max_position_embeddings``, those with ALiBi only ``model_max_length``."""
    return "rope" if config.get("max_position_embeddings") else "alibi"


def _second_generation(config):
    """Output heads of the second generation have normalised rows.

    Its configuration class has ``z_loss_weight`` (https://huggingface.co/baichuan-inc/Baichuan2-13B-Chat), which the first
    files on the hub lack; these have its vocabulary, or more if tokens were added.
    """
    first = "BaiChuanForCausalLM" in config.get("architectures", ())
    return not first and ("z_loss_weight" in config or config["vocab_size"] >= VOCAB2)


def _decoder(dims):
    position = {"rope": rope_spec(dims)} if dims.position == "rope" else {"slopes": tuple(alibi_slopes(dims.heads))}
    return {**position, "unit_head": dims.norm_head}


CARD = Family(
    name="baichuan",
    architectures=("BaichuanForCausalLM", "BaiChuanForCausalLM"),
    model_type="baichuan",
    modeling="llmctl_llama.modeling_baichuan:BaichuanForCausalLM",
    paddle_prefix="baichuan.",
    torch_prefix="model.",
    position="rope-neox-or-alibi",
    settings=(
        *(setting for setting in HF_DECODER if setting.name != "max_positions"),
        ConfigField("trained", "model_max_length", None),
        ConfigField("max_positions", "max_position_embeddings", derive=lambda c: c.get("model_max_length") or 4096),
        ConfigField("position", "position_kind", derive=_kind, allowed=("rope", "alibi")),
        ConfigField("norm_head", "norm_head", derive=lambda config: _second_generation(config), recorded=True),
        ConfigField("norm_eps", "rms_norm_eps", 1e-6),
        ConfigField("rope_theta", "rope_theta", 10000.0),
        ConfigField("activation", "hidden_act", "silu", allowed=("silu",)),
        ConfigField("z_loss", "z_loss_weight", 0, allowed=(0, 0.0)),
    ),
    inert=("gradient_checkpointing", "user_token_id", "assistant_token_id"),
    tokens=TokenFacts(speakers={"user": 195, "assistant": 196}),
    chat_template=template(__file__, "baichuan.jinja"),
    ignored_tensors=("*.rotary_emb.inv_freq",),
    paddlenlp=hf_decoder_fused,
    paddlenlp_prefix="llama.",
    gguf=Gguf("baichuan", True, implied=lambda m: {"position": "alibi" if m["block_count"] == 40 else "rope"}),
    decoder=_decoder,
    sizes={
        "baichuan-7b": Size(HUB + "Baichuan-7B/blob/main/config.json", 7_000_559_616, dict(SMALL, vocab=64000)),
        "baichuan-13b": Size(HUB + "Baichuan-13B-Base/blob/main/config.json", 13_264_901_120, dict(LARGE, vocab=64000)),
        "baichuan2-7b": Size(HUB + "Baichuan2-7B-Base/blob/main/config.json", 7_505_973_248, SMALL2),
        "baichuan2-13b": Size(HUB + "Baichuan2-13B-Base/blob/main/config.json", 13_896_668_160, LARGE2),
    },
    params=tuple(replace(row, torch=PACKED) if row.slot.startswith("qkv.") else row for row in HF_DECODER_ROWS),
)


@hookimpl
def describe_family():
    return CARD


@hookimpl
def weight_map(card, dims, source):
    if source != "torch":
        return None
    qkv = dict(zip(("qkv.0", "qkv.1", "qkv.2"), contiguous_slices(1, 1, 1), strict=True))
    return [WeightMapping(t.torch_name, t.name, t.transpose, qkv.get(t.slot)) for t in card.expand(dims)]
