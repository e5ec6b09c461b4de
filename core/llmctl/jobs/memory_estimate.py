"""Memory of a training step, estimated from a family's card before anything is built. No paddle here.

The peak is the sum of the process, weights, optimizer moments, activations that layers keep for the backward pass, and the
larger of two that never exist together: logits with their gradient, or gradients and a recomputed layer. Layers keep the inputs of
their norms and linears and the outputs of their linears; the compiled attention keeps no attention scores.
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
"""Bits of a weight of a quantized base, scales included, by ``method.base``."""


@dataclass(frozen=True)
class Step:
    """The largest forward pass of a run.

    Attributes:
        tokens: Tokens of all rows, padding included.
        length: Columns of a row.
        labels: Positions whose logits are computed.
    """

    tokens: int
    length: int
    labels: int


@dataclass(frozen=True)
class Training:
    """The settings of a training that determine its memory.

    Attributes:
        trained: Trainable parameters.
        method: Value of ``method.name``.
        rank: Rank of the adapters; 0 = none.
        targets: Paths of the linears with adapters.
        base: How the linears of a frozen base are stored: ``float`` or a key of ``BASE_BITS``.
        average: Whether averaged weights are kept.
        reference: Whether a reference model is kept.
        recompute: ``none``, ``full`` or ``attention``.
        recompute_interval: Every ``recompute_interval``-th layer is recomputed.
        width: Bytes of a value (activation, weight, moment).
        fused_attention: Whether attention scores are never stored.
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
    """Bytes by part; ``peak`` adds them up.

    Args:
        card: The family.
        dims: The model's dims.
        training: How it is trained.
        step: The largest forward pass.
    """
    width, trained = training.width, training.trained
    kept, recomputed = _activations(card, dims, training, step)
    return {
        "process": PROCESS,
        "weights": _weights(card, dims, training),
        "adapters": trained * width if training.method != "full" else 0,
        "reference model": card.count(dims) * width if training.reference else 0,
        "optimizer": 2 * trained * width,
        "averaged weights": trained * width if training.average else 0,
        "activations": kept * width,
        "logits": 2 * step.labels * int(dims.vocab) * width,
        "gradients": trained * width,
        "recomputed layer": recomputed * width,
    }


def cache_bytes(card: Family, dims: Dims, tokens: int, width: int = FLOAT) -> int:
    """Bytes of the KV cache of ``tokens`` tokens, in generation."""
    return 2 * int(dims.layers) * int(dims.kv_heads) * int(dims.head_dim) * tokens * width


def _weights(card: Family, dims: Dims, training: Training) -> int:
    total = card.count(dims) * training.width
    if training.base not in BASE_BITS:
        return total
    packed = sum(t.size for t in card.expand(dims) if t.kind == "linear" and t.layer is not None)
    return total - packed * training.width + int(packed * BASE_BITS[training.base] / 8)


def _activations(card: Family, dims: Dims, training: Training, step: Step) -> tuple[int, int]:
    """Values that the layers keep for the backward pass, and those of the largest recomputed layer."""
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
        recompute = training.recompute if index % training.recompute_interval == 0 else "none"
        stored = {
            "none": attention + rest,
            "attention": rest + step.tokens * int(dims.hidden),
            "full": step.tokens * int(dims.hidden),
        }[recompute]
        kept += stored
        largest = max(largest, attention + rest - stored)
    return kept + 3 * step.tokens * int(dims.hidden), largest


def _attention(card: Family, dims: Dims, rows: list[Tensor], training: Training, step: Step) -> float:
    """Values per token of the norm, the projections, RoPE, and attention scores if they are stored."""
    values = _norms(rows, ("ln", "q_norm", "k_norm")) + _linears(rows, ("qkv", "out"), training)
    if card.position.startswith("rope"):
        values += sum(t.shape[-1] for t in rows if base_slot(t.slot) == "qkv") * 2 / 3
    dropout = any(dims.get(name) for name in ("attention_dropout", "dropout"))
    if dropout or not training.fused_attention:
        values += (4 if dropout else 3) * int(dims.heads) * step.length
    return values


def _feed_forward(dims: Dims, rows: list[Tensor], training: Training) -> float:
    """Values per token of the norm and the feed-forward layer; with experts, of those that a token is routed to."""
    values = _norms(rows, ("ffn_ln",))
    plain = [t for t in rows if t.expert is None]
    experts = [t for t in rows if t.expert is not None]
    values += _linears(plain, ("ffn1", "ffn2"), training)
    if experts:
        top_k = int(dims.get("top_k") or 2)
        count = len({t.expert for t in experts})
        values += (
            top_k
            / count
            * sum(_linears([t for t in experts if t.expert == e], ("ffn1", "ffn2"), training) for e in range(count))
        )
        values += 2 * top_k * int(dims.hidden)
    return values


def _norms(rows: list[Tensor], slots: tuple[str, ...]) -> float:
    """Values per token of the inputs of norms; norms of heads are as wide as the projection before them."""
    values = 0.0
    for tensor in rows:
        if tensor.kind == "norm" and base_slot(tensor.slot) in slots:
            of_heads = {"q_norm": ".0", "k_norm": ".1"}.get(base_slot(tensor.slot))
            inputs = next((t.shape[-1] for t in rows if of_heads and t.slot == "qkv" + of_heads), tensor.shape[0])
            values += inputs
    return values


def _linears(rows: list[Tensor], slots: tuple[str, ...], training: Training) -> float:
    """Values per token of inputs, shared by parallel linears, and outputs; with an adapter, of its low-rank product."""
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
    """The peak in bytes: logits are freed before gradients and recomputed layers exist."""
    late = parts["gradients"] + parts["recomputed layer"]
    return sum(parts.values()) - min(parts["logits"], late)
