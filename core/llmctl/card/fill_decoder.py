"""Makes the ``DecoderSpec`` of a model, which the fused engine runs, from its card and dims.

Most fields follow from slots and symbolic shapes; the card's ``decoder`` gives the others. No paddle or numpy here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmctl.card import slots, support
from llmctl.card.alibi import alibi_slopes
from llmctl.card.decoder_spec import DecoderSpec, Experts, Rope
from llmctl.card.dims import Dims
from llmctl.card.family import Family, Tensor
from llmctl.card.rope import ROPE_RULES, RopeParams, RopeRule, rope_rule
from llmctl.card.shapes import Axis
from llmctl.errors import UnsupportedError

_GATED = ("swiglu",)
"""Activations whose ``ffn1`` holds gate and up."""


def fill_decoder(card: Family, dims: Dims) -> DecoderSpec:
    """The decoder spec of a model.

    Args:
        card: The family.
        dims: The model's dims.

    Raises:
        UnsupportedError: The fused engine does not support some of its tensors or its positions; the message names them.
    """
    tensors = card.expand(dims)
    outer = {tensor.slot: tensor for tensor in tensors if tensor.layer is None and tensor.slot}
    layers = _slots(tensors, dims.layers)
    overrides = dict(card.decoder(dims)) if card.decoder else {}
    if others := support.without_kernel(card):
        raise _unfit(card, f"{' and '.join(others)} 'other' has no kernel")
    empty = [slot for slot in slots.NEEDED_OUTSIDE if slot not in outer]
    empty += sorted({slot for layer in layers for slot in slots.NEEDED - layer.keys()})
    if empty:
        raise _unfit(card, f"no tensor fills {', '.join(empty)}")
    for layer in layers:
        _check_biases(card, layer)
    sizes, position = _sizes(card, dims, outer, layers), _position(card, dims, outer, overrides)
    derived = {
        "outer": {slot: tensor.name for slot, tensor in outer.items()},
        "layers": tuple({slot: tuple(t.name for t in rows) for slot, rows in layer.items()} for layer in layers),
        "norm": card.norm,
        "norm_eps": dims.get("norm_eps", 1e-5),
        "activation": card.activation,
        "window": dims.get("window"),
        "score_scales": (dims.head_dim**-0.5,) * dims.layers,
    }
    return DecoderSpec(**{**derived, **sizes, **position, **overrides})


def rope_spec(
    dims: Dims,
    scaling: Mapping[str, Any] | None = None,
    rules: Mapping[str, RopeRule] = ROPE_RULES,
    **options: Any,
) -> Rope:
    """RoPE as ``llmctl.nn.Rotary`` computes it; frequencies that depend on the length are those of the trained length.

    Args:
        dims: ``head_dim``; ``rope_theta`` unless ``theta`` is given.
        scaling: HF's ``rope_scaling``.
        rules: Scaling rules by ``rope_type``.
        **options: Fields of ``Rope`` (``rotary_dim`` is the whole head by default), ``theta``, and ``trained``, the trained
            length (default: ``max_positions``).
    """
    rotary_dim, axes = options.pop("rotary_dim", dims.head_dim), 2 if options.get("pairs") == "2d" else 1
    theta, trained = options.pop("theta", None) or dims.rope_theta, options.pop("trained", None) or dims.max_positions
    rule, given = rope_rule(scaling, rules), (RopeParams(rotary_dim // axes, theta, trained), dict(scaling or {}))
    stable = rule.stable_length(*given) if rule.by_length else None
    derived = {
        "frequencies": tuple(rule.apply(*given)),
        "max_stable_length": stable,
        "attention_factor": rule.factor(*given),
    }
    return Rope(**{"rotary_dim": rotary_dim, **derived, **options})


def _slots(tensors: Sequence[Tensor], count: int) -> list[dict[str, list[Tensor]]]:
    """For each layer, slot -> its tensors, ordered by expert, then by part."""
    layers: list[dict[str, list[Tensor]]] = [{} for _ in range(count)]
    for tensor in tensors:
        if tensor.slot and tensor.layer is not None:
            layers[tensor.layer].setdefault(slots.base_slot(tensor.slot), []).append(tensor)
    return [{slot: sorted(rows, key=_order) for slot, rows in layer.items()} for layer in layers]


def _order(tensor: Tensor) -> tuple[int, ...]:
    return (-1 if tensor.expert is None else tensor.expert, *(int(part) for part in tensor.slot.split(".")[1:]))


def _check_biases(card: Family, layer: Mapping[str, Sequence[Tensor]]) -> None:
    for slot in ("qkv", "out", "ffn1", "ffn2"):
        weights, biases = layer[slot], layer.get(slot + "_bias", ())
        if biases and sum(bias.shape[-1] for bias in biases) != sum(weight.shape[-1] for weight in weights):
            raise _unfit(card, f"{slot}_bias does not cover all outputs of {slot}")


def _sizes(
    card: Family, dims: Dims, outer: Mapping[str, Tensor], layers: Sequence[Mapping[str, Sequence[Tensor]]]
) -> dict[str, Any]:
    """Sizes, the layout of the QKV projection, and the routing."""
    vocab, embed = outer["embed"].shape
    gated = card.activation in _GATED
    ffn = layers[0]["ffn2"][0].shape[0]
    for layer in layers:
        up = [tensor for tensor in layer["ffn1"] if tensor.expert in (None, 0)]
        factors = up[0].param.axes[-1].terms[0].factors
        if layer["ffn2"][0].shape[0] != ffn or sum(tensor.shape[-1] for tensor in up) != ffn * (1 + gated):
            raise _unfit(
                card, f"ffn1 must have {'gate and up' if gated else 'outputs'} as wide as ffn2, the same in every layer"
            )
        if gated and len(up) == 1 and factors[0] != 2:
            raise _unfit(card, f"{up[0].param.shape!r}: gate and up must be concatenated, 2*...")
    qkv = layers[0]["qkv"]
    layout = _qkv_layout(qkv[0].param.axes[-1]) if len(qkv) == 1 else "parts"
    if layout is None:
        raise _unfit(card, f"{qkv[0].param.shape!r} is an unknown layout of queries, keys and values")
    experts = None
    if any("gate" in layer for layer in layers):
        if not all("gate" in layer for layer in layers):
            raise _unfit(card, "only some of its layers are mixtures of experts")
        if card.moe is None or card.moe.router != "softmax-topk":
            raise _unfit(card, "it has routers, but its card has no moe=Moe('softmax-topk', ...)")
        renormalize = dims.get("renormalize", card.moe.renormalize)
        experts = Experts(count=dims.experts, top_k=dims.get("top_k", card.moe.top_k), renormalize=renormalize)
    return dict(hidden=dims.hidden, heads=dims.heads, kv_heads=dims.kv_heads, head_dim=dims.head_dim, ffn=ffn,
                vocab=vocab, embed=embed, qkv=layout, experts=experts)  # fmt: skip


def _qkv_layout(axis: Axis) -> str | None:
    """Layout of queries, keys and values in the outputs of one projection, as ``DecoderSpec.qkv`` names it; None = unknown."""
    terms = [term.factors for term in axis.terms]
    if terms == [(3, "heads", "head_dim")] or [term[0] for term in terms] == ["heads", "kv_heads", "kv_heads"]:
        return "parts"
    return "heads" if terms == [("heads", 3, "head_dim")] else None


def _position(card: Family, dims: Dims, outer: Mapping[str, Tensor], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The fields for the card's position encoding."""
    if card.position == "learned":
        if "positions" not in outer:
            raise _unfit(card, "no tensor fills positions")
        return {"max_positions": dims.max_positions}
    if card.position == "none" or overrides.keys() & {"rope", "slopes"}:
        return {}
    if card.position == "alibi":
        return {"slopes": tuple(alibi_slopes(dims.heads))}
    if card.position == "rope-neox" and "rope_theta" in dims:
        return {"rope": rope_spec(dims, dims.get("rope_scaling"))}
    raise _unfit(card, f"position={card.position!r} needs a decoder on the card that sets rope or slopes")


def _unfit(card: Family, why: str) -> UnsupportedError:
    return UnsupportedError(f"the fused decoder does not support {card.name}: {why}")
