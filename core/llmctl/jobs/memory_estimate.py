"""Memory of a training step, estimated from a family's card before anything is built. No paddle here.

What a step holds at its peak: the process itself, weights, the optimizer's moments, what the layers keep for their
gradients, and the larger of two that come one after the other: scores of the vocabulary with their gradient, or gradients
and a layer that is computed again. Layers keep the input of each norm and linear and
the outputs of their linears; attention keeps nothing of the size of its scores where the compiled operator computes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmctl.card.dims import Dims
from llmctl.card.family import Family, Tensor
from llmctl.card.slots import base_slot

PROCESS = 300 << 20
"""Bytes of a process that has imported paddle and this package, without a model."""

FLOAT = 4
BASE_BITS = {"int8": 8.5, "int4": 4.5, "nf4": 4.5}
"""Bits of a weight of a quantised base, scales included, by ``method.base``."""


@dataclass(frozen=True)
class Step:
    """The largest forward pass of a run.

    Attributes:
        tokens: Tokens of all rows, padding included.
        length: Columns of a row.
        labels: Positions whose scores of the vocabulary are computed.
    """

    tokens: int
    length: int
    labels: int


@dataclass(frozen=True)
class Training:
    """How a model is trained, as far as memory goes.

    Attributes:
        trained: Parameters that move.
        method: ``full``, ``lora`` or another.
        rank: Of adapters; 0 = none.
        targets: Paths of the linears that have adapters.
        base: Type of a frozen base's linears, ``float`` or a key of ``BASE_BITS``.
        average: Whether averaged weights are kept.
        reference: Whether a second model is held.
        recompute: ``none``, ``full`` or ``attention``.
        recompute_interval: Of so many layers one is recomputed.
        width: Bytes of a value.
        fused_attention: Whether scores are never held.
    """

    trained: int
    method: str = "full"
    rank: int = 0
    targets: tuple[str, ...] = ()
    base: str = "float"
    average: bool = False
    reference: bool = False
    recompute: str = "none"
    recompute_interval: int = 1
    width: int = FLOAT
    fused_attention: bool = True


def estimate(card: Family, dims: Dims, training: Training, step: Step) -> dict[str, int]:
    """Bytes by part, in the order in which they come; ``total`` of them is the peak.

    Args:
        card: The family.
        dims: The model's dims.
        training: How it is trained.
        step: The largest forward pass.
    """
    width, moved = training.width, training.trained
    kept, again = _activations(card, dims, training, step)
    return {
        "process": PROCESS,
        "weights": _weights(card, dims, training),
        "adapters": moved * width if training.method != "full" else 0,
        "reference model": card.count(dims) * width if training.reference else 0,
        "optimizer": 2 * moved * width,
        "averaged weights": moved * width if training.average else 0,
        "activations": kept * width,
        "scores": 2 * step.labels * int(dims.vocab) * width,
        "gradients": moved * width,
        "recomputed layer": again * width,
    }


def cache_bytes(card: Family, dims: Dims, tokens: int, width: int = FLOAT) -> int:
    """Bytes of keys and values of so many tokens, in generation."""
    return 2 * int(dims.layers) * int(dims.kv_heads) * int(dims.head_dim) * tokens * width


def _weights(card: Family, dims: Dims, training: Training) -> int:
    total = card.count(dims) * training.width
    if training.base not in BASE_BITS:
        return total
    packed = sum(t.size for t in card.expand(dims) if t.kind == "linear" and t.layer is not None)
    return total - packed * training.width + int(packed * BASE_BITS[training.base] / 8)


def _activations(card: Family, dims: Dims, training: Training, step: Step) -> tuple[int, int]:
    """Values that the layers keep for their gradients, and those of the largest layer that is computed again."""
    layers: dict[int, list[Tensor]] = {}
    for tensor in card.expand(dims):
        if tensor.layer is not None:
            layers.setdefault(tensor.layer, []).append(tensor)
    kept = largest = 0
    for index, rows in layers.items():
        attention, rest = (
            int(part * step.tokens)
            for part in (_attention(card, dims, rows, training, step), _feed_forward(dims, rows, training))
        )
        again = training.recompute if index % training.recompute_interval == 0 else "none"
        held = {
            "none": attention + rest,
            "attention": rest + step.tokens * int(dims.hidden),
            "full": step.tokens * int(dims.hidden),
        }[again]
        kept += held
        largest = max(largest, attention + rest - held)
    return kept + 3 * step.tokens * int(dims.hidden), largest


def _attention(card: Family, dims: Dims, rows: list[Tensor], training: Training, step: Step) -> float:
    """Values per token: of the norm, the projections, positions, and scores where they are held."""
    values = _norms(rows, ("ln", "q_norm", "k_norm")) + _linears(rows, ("qkv", "out"), training)
    if card.position.startswith("rope"):
        values += sum(t.shape[-1] for t in rows if base_slot(t.slot) == "qkv") * 2 / 3
    dropout = any(dims.get(name) for name in ("attention_dropout", "dropout"))
    if dropout or not training.fused_attention:
        values += (4 if dropout else 3) * int(dims.heads) * step.length
    return values


def _feed_forward(dims: Dims, rows: list[Tensor], training: Training) -> float:
    """Values per token of the norm and the feed-forward layer; of experts, those that a token goes to."""
    values = _norms(rows, ("ffn_ln",))
    plain = [t for t in rows if t.expert is None]
    experts = [t for t in rows if t.expert is not None]
    values += _linears(plain, ("ffn1", "ffn2"), training)
    if experts:
        chosen = int(dims.get("top_k") or 2)
        count = len({t.expert for t in experts})
        values += (
            chosen
            / count
            * sum(_linears([t for t in experts if t.expert == e], ("ffn1", "ffn2"), training) for e in range(count))
        )
        values += 2 * chosen * int(dims.hidden)
    return values


def _norms(rows: list[Tensor], slots: tuple[str, ...]) -> float:
    """The inputs of norms; those of heads are as wide as the projections that they follow."""
    values = 0.0
    for tensor in rows:
        if tensor.kind == "norm" and base_slot(tensor.slot) in slots:
            of_heads = {"q_norm": ".0", "k_norm": ".1"}.get(base_slot(tensor.slot))
            wide = next((t.shape[-1] for t in rows if of_heads and t.slot == "qkv" + of_heads), tensor.shape[0])
            values += wide
    return values


def _linears(rows: list[Tensor], slots: tuple[str, ...], training: Training) -> float:
    """Inputs, one for linears side by side, and outputs; of an adapter, its narrow product too."""
    inputs: dict[str, int] = {}
    outputs = 0.0
    for tensor in rows:
        if tensor.kind == "linear" and base_slot(tensor.slot) in slots:
            inputs[base_slot(tensor.slot)] = tensor.shape[0]
            outputs += tensor.shape[1]
            if tensor.name.removesuffix(".weight") in training.targets:
                outputs += training.rank
    return sum(inputs.values()) + outputs


def peak(parts: Mapping[str, int]) -> int:
    """The peak, in bytes: scores are gone when gradients and recomputed layers come."""
    late = parts["gradients"] + parts["recomputed layer"]
    return sum(parts.values()) - min(parts["scores"], late)
