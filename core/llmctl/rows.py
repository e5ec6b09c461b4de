"""Rows of a card that come in pairs: a weight and its bias."""

from __future__ import annotations

from llmctl.card import Param


def linear_rows(
    name: str, shape: str, slot: str = "", when: str = "", bias_when: str = "", torch_layout: str = ""
) -> tuple[Param, Param]:
    """A linear ``name`` with a bias as long as its last axis.

    Args:
        name: The layer, without ``.weight``.
        shape: Of the weight.
        slot: Of the weight; the bias of ``qkv.1`` takes ``qkv_bias.1``.
        when: The setting that must be true for the layer to exist.
        bias_when: The setting that must be true for the bias to exist, where that is another.
        torch_layout: As in ``Param``.
    """
    return (
        Param(name + ".weight", shape, slot=slot, when=when, torch_layout=torch_layout),
        Param(name + ".bias", shape.split(",")[-1].strip(), slot=bias_slot(slot), when=bias_when or when),
    )


def norm_rows(name: str, slot: str = "", width: str = "hidden", when: str = "") -> tuple[Param, Param]:
    """A LayerNorm ``name``: weight and bias of ``width``.

    Args:
        name: The layer, without ``.weight``.
        slot: Of the weight; the bias of ``ln`` takes ``ln_bias``.
        width: Symbolic length of both.
        when: The setting that must be true for the layer to exist.
    """
    return (
        Param(name + ".weight", width, kind="norm", slot=slot, when=when),
        Param(name + ".bias", width, slot=bias_slot(slot), when=when),
    )


def bias_slot(slot: str) -> str:
    """The slot of the bias that belongs to a weight's slot."""
    place, dot, part = slot.partition(".")
    return f"{place}_bias{dot}{part}" if slot else ""
