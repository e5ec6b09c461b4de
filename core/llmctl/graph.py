"""A card's standard decoder, filled: what the fused engine computes for a model of given dims.

Slots and symbolic shapes say most of it; the card's ``decoder`` says what they cannot. No paddle or numpy here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmctl import standard
from llmctl.card import Dims, Family, Tensor
from llmctl.fused import Experts, FusedDecoder, Rope
from llmctl.nn.alibi import slopes
from llmctl.nn.frequencies import RULES, Rotation, Rule, rule_for
from llmctl.shapes import Axis

_GATED = ("swiglu",)
"""Activations of which ``ffn1`` gives gate and up."""


def standard_decoder(card: Family, dims: Dims) -> FusedDecoder | None:
    """The standard decoder of a model; None where its tensors or positions are not of a kind that it has.

    Args:
        card: The family.
        dims: The model's dims.
    """
    tensors = card.expand(dims)
    outer = {tensor.slot: tensor for tensor in tensors if tensor.layer is None and tensor.slot}
    layers = _slots(tensors, dims.layers)
    said = dict(card.decoder(dims)) if card.decoder else {}
    if standard.without_kernel(card) or not outer.keys() >= standard.NEEDED_OUTSIDE:
        return None
    if not layers or not all(layer.keys() >= standard.NEEDED for layer in layers):
        return None
    sizes, position = _sizes(card, dims, outer, layers[0]), _position(card, dims, outer, said)
    if sizes is None or position is None:
        return None
    made = {
        "outer": {slot: tensor.name for slot, tensor in outer.items()},
        "layers": tuple({slot: tuple(t.name for t in rows) for slot, rows in layer.items()} for layer in layers),
        "norm": card.norm,
        "norm_eps": dims.get("norm_eps", 1e-5),
        "activation": card.activation,
        "window": dims.get("window"),
        "score_scales": (dims.head_dim**-0.5,) * dims.layers,
    }
    return FusedDecoder(**{**made, **sizes, **position, **said})


def rope(
    dims: Dims,
    scaling: Mapping[str, Any] | None = None,
    rules: Mapping[str, Rule] = RULES,
    **kind: Any,
) -> Rope:
    """Rotations as ``nn.position.Rotary`` has them; those that depend on the length hold up to the trained one.

    Args:
        dims: ``head_dim``; ``rope_theta`` unless the kind has a ``theta``.
        scaling: HF's ``rope_scaling``.
        rules: Scaling rules by ``rope_type``.
        **kind: ``width`` that is turned (default: the whole head), ``parts`` of it that have angles of their own (default:
            1), ``theta``, ``trained`` length (default: ``max_positions``), and other fields of `Rope`.
    """
    width, parts = kind.pop("width", dims.head_dim), kind.pop("parts", 1)
    theta, trained = kind.pop("theta", None) or dims.rope_theta, kind.pop("trained", None) or dims.max_positions
    rule = rule_for(scaling, rules)
    frequencies = rule.apply(Rotation(width // parts, theta, trained), dict(scaling or {}))
    stable = trained if rule.by_length else None
    return Rope(**{"width": width, "frequencies": tuple(frequencies), "stable_length": stable, **kind})


def _slots(tensors: Sequence[Tensor], count: int) -> list[dict[str, list[Tensor]]]:
    """For each layer, slot -> its tensors: expert by expert, part by part."""
    layers: list[dict[str, list[Tensor]]] = [{} for _ in range(count)]
    for tensor in tensors:
        if tensor.slot and tensor.layer is not None:
            layers[tensor.layer].setdefault(standard.place(tensor.slot), []).append(tensor)
    return [{slot: sorted(rows, key=_order) for slot, rows in layer.items()} for layer in layers]


def _order(tensor: Tensor) -> tuple[int, ...]:
    return (-1 if tensor.expert is None else tensor.expert, *(int(part) for part in tensor.slot.split(".")[1:]))


def _sizes(
    card: Family, dims: Dims, outer: Mapping[str, Tensor], layer: Mapping[str, Sequence[Tensor]]
) -> dict[str, Any] | None:
    """Widths and counts, how projections lie, and the routing; None where a projection lies in a way nobody knows."""
    vocab, embed = outer["embed"].shape
    ffn = layer["ffn2"][0].shape[0]
    up = [tensor for tensor in layer["ffn1"] if tensor.expert in (None, 0)]
    gated = card.activation in _GATED
    lies = _packing(layer["qkv"][0].param.axes[-1]) if len(layer["qkv"]) == 1 else "parts"
    in_blocks = len(up) > 1 or not gated or up[0].param.axes[-1].terms[0].factors[0] == 2
    if lies is None or not in_blocks or sum(tensor.shape[-1] for tensor in up) != ffn * (1 + gated):
        return None
    experts = None
    if "gate" in layer:
        if card.moe is None or card.moe.router != "softmax-topk":
            return None
        renormalize = dims.get("renormalize", card.moe.renormalize)
        experts = Experts(count=dims.experts, top_k=dims.get("top_k", card.moe.top_k), renormalize=renormalize)
    return dict(hidden=dims.hidden, heads=dims.heads, kv_heads=dims.kv_heads, head_dim=dims.head_dim, ffn=ffn,
                vocab=vocab, embed=embed, qkv=lies, experts=experts)  # fmt: skip


def _packing(axis: Axis) -> str | None:
    """How queries, keys and values lie in the outputs of one projection; None = in a way that is not known."""
    terms = [term.factors for term in axis.terms]
    if terms == [(3, "heads", "head_dim")] or [term[0] for term in terms] == ["heads", "kv_heads", "kv_heads"]:
        return "parts"
    return "heads" if terms == [("heads", 3, "head_dim")] else None


def _position(card: Family, dims: Dims, outer: Mapping[str, Tensor], said: Mapping[str, Any]) -> dict[str, Any] | None:
    """Fields that the card's position encoding stands for; None where the card had to say them and does not."""
    if card.position == "learned":
        return {"max_positions": dims.max_positions} if "positions" in outer else None
    if card.position == "none" or said.keys() & {"rope", "slopes"}:
        return {}
    if card.position == "alibi":
        return {"slopes": tuple(slopes(dims.heads))}
    if card.position == "rope-neox" and "rope_theta" in dims:
        return {"rope": rope(dims, dims.get("rope_scaling"))}
    return None
