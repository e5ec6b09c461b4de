"""Ready rows for cards: fields of one kind, a weight with its bias, the tensors of a decoder as most torch files name them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmctl.card.config_fields import ConfigField
from llmctl.card.family import Param
from llmctl.errors import ConfigError


def above_zero(key: str) -> Callable[[Any], None]:
    """A ``check`` for numbers above 0.

    Args:
        key: The key in ``config.json``.
    """

    def check(value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ConfigError(f"{key}={value!r} must be a number above 0")

    return check


def full_attention(kinds: Any) -> None:
    """A ``check`` of ``layer_types``: every layer must have full attention.

    Raises:
        ConfigError: A layer has another kind.
    """
    if any(kind != "full_attention" for kind in kinds):
        raise ConfigError(f"layer_types={kinds!r} is not supported; every layer must be 'full_attention'")


def required_fields(**keys: str) -> tuple[ConfigField, ...]:
    """Fields that ``config.json`` must have: keys there by names here."""
    return tuple(ConfigField(name, key) for name, key in keys.items())


def fixed_fields(*value: Any, **keys: str) -> tuple[ConfigField, ...]:
    """Fields with the same value in every supported model.

    Args:
        *value: The value in all its spellings; the last is the default where the key is absent.
        **keys: Keys in ``config.json`` by names here.
    """
    return tuple(ConfigField(name, key, value[-1], allowed=value) for name, key in keys.items())


def linear_rows(
    name: str, shape: str, slot: str = "", when: str = "", bias_when: str = "", torch_layout: str = ""
) -> tuple[Param, Param]:
    """The weight and bias of a linear ``name``.

    Args:
        name: The layer, without ``.weight``.
        shape: Shape of the weight; its last axis is the bias's.
        slot: Slot of the weight; the bias of ``qkv.1`` gets ``qkv_bias.1``.
        when: The field that must be true for the layer to exist.
        bias_when: The field that must be true for the bias to exist, if that differs.
        torch_layout: As in ``Param``.
    """
    return (
        Param(name + ".weight", shape, slot=slot, when=when, torch_layout=torch_layout),
        Param(name + ".bias", shape.split(",")[-1].strip(), slot=bias_slot(slot), when=bias_when or when),
    )


def norm_rows(name: str, slot: str = "", width: str = "hidden", when: str = "") -> tuple[Param, Param]:
    """The weight and bias of a LayerNorm ``name``.

    Args:
        name: The layer, without ``.weight``.
        slot: Slot of the weight; the bias of ``ln`` gets ``ln_bias``.
        width: Symbolic size of both.
        when: The field that must be true for the layer to exist.
    """
    return (
        Param(name + ".weight", width, kind="norm", slot=slot, when=when),
        Param(name + ".bias", width, slot=bias_slot(slot), when=when),
    )


def bias_slot(slot: str) -> str:
    """The slot of the bias for a weight's slot."""
    base, dot, part = slot.partition(".")
    return f"{base}_bias{dot}{part}" if slot else ""


_L, _A, _M = "layers.{layer}.", "layers.{layer}.self_attn.", "layers.{layer}.mlp."
HF_DECODER_ROWS = (
    Param("embed_tokens.weight", "vocab, hidden", kind="embed", slot="embed"),
    Param(_A + "q_proj.weight", "hidden, heads*head_dim", slot="qkv.0"),
    Param(_A + "k_proj.weight", "hidden, kv_heads*head_dim", slot="qkv.1"),
    Param(_A + "v_proj.weight", "hidden, kv_heads*head_dim", slot="qkv.2"),
    Param(_A + "o_proj.weight", "heads*head_dim, hidden", slot="out"),
    Param(_M + "gate_proj.weight", "hidden, ffn", slot="ffn1.0"),
    Param(_M + "up_proj.weight", "hidden, ffn", slot="ffn1.1"),
    Param(_M + "down_proj.weight", "ffn, hidden", slot="ffn2"),
    Param(_L + "input_layernorm.weight", "hidden", kind="norm", slot="ln"),
    Param(_L + "post_attention_layernorm.weight", "hidden", kind="norm", slot="ffn_ln"),
    Param("norm.weight", "hidden", kind="norm", slot="final_ln"),
    Param("/lm_head.weight", "hidden, vocab", slot="head", when="not tied"),
)
"""A decoder with grouped-query attention, a gated feed-forward layer, RMSNorm and no biases; a card adds what differs."""
