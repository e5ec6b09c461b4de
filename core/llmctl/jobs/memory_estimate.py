"""Memory of a training step, estimated from a family's card before anything is built. No paddle here.

The peak is the sum of the process, weights, optimizer moments, the room of a recomputed layer with its gradients, and the larger
of two that never exist together: activations that layers keep for the backward pass with holes, logits and the gradient of the
output head; or all gradients. Gradients that are added up over passes are there all the time. Layers keep the inputs of their
norms and linears; the compiled attention keeps no attention scores. Of several ranks one is estimated, by its ``Share``.

Holes are the room of tensors that a layer frees, which the heap of the C library gives to narrower tensors alone: paddle asks for
whole pages, which a room of exactly the same size seldom has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmctl.card.dims import Dims
from llmctl.card.family import Family, Tensor
from llmctl.card.slots import base_slot
from llmctl.infer.options import default_kv
from llmctl.jobs.shares import Share, by_inputs, tensors_of

PROCESS, TOKEN = 330 << 20, 1 << 10
"""Bytes of a process that trains, without a model and a tokenizer, and of each token of a tokenizer."""

FLOAT = 4
KV_BYTES = {"float32": 4, "float16": 2}
WHOLE = Share()
"""One rank has everything."""
BASE_BITS = {"int8": 8.5, "int4": 4.5, "nf4": 4.5}
"""Bits of a weight of a quantized base, scales included, by ``method.base``."""


@dataclass(frozen=True)
class MicroBatch:
    """The largest micro-batch of a run: the rows of one forward pass.

    Attributes:
        tokens: Tokens of all rows, padding included.
        length: Tokens of each row, padding included.
        labels: Positions whose logits are computed.
    """

    tokens: int
    length: int
    labels: int


@dataclass(frozen=True)
class Training:
    """The settings of a training that determine its memory.

    Attributes:
        trained: Trainable parameters, without those of ``whole``.
        method: Value of ``method.name``.
        rank: Rank of the adapters; 0 = none.
        targets: Paths of the linears with adapters.
        whole: Names of the tensors that are trained whole beside adapters.
        base_bits: Bits of a weight of the frozen base's linears, scales included; 0 = they are floats.
        average: Whether averaged weights are kept.
        reference: Whether a reference model is kept.
        recompute: ``none``, ``full`` or ``attention``.
        recompute_interval: Every ``recompute_interval``-th layer is recomputed.
        width: Bytes of a value (activation, weight; without master weights also gradient and moment).
        masters: Whether the weights are copies, in a half type, of FP32 master weights that gradients are added up for.
        fused_attention: Whether attention scores are never stored, nor queries and keys before RoPE.
        magnitude: Whether adapters have a magnitude (DoRA).
        dropout: Whether the adapters' inputs have dropout.
        logits: Tensors as large as the logits that exist together; 1 = their gradient is written over them.
        accumulated: Whether gradients are added up over several passes.
    """

    trained: int
    method: str = "full"
    rank: int = 0
    targets: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    base_bits: float = 0.0
    average: bool = False
    reference: bool = False
    recompute: str = "none"
    recompute_interval: int = 1
    width: int = FLOAT
    masters: bool = False
    fused_attention: bool = True
    magnitude: bool = False
    dropout: bool = False
    logits: int = 1
    accumulated: bool = False


@dataclass(frozen=True)
class RankModel:
    """What a rank has of a model, whatever the size of its batches.

    Attributes:
        held: Parameters.
        routed: Of these, those of experts.
        weights: Bytes of the parameters.
        routed_weights: Of these, those of experts.
        kept: Values that layers keep for the backward pass, for each token.
        holes: Values whose room they free and nothing uses again, for each token.
        recomputed: Values of the largest recomputed layer and of their gradients, for each token.
        unit: Parameters of the largest layer, embeddings and output head among them.
        head: Trained parameters of the output head.
        whole: Parameters that are trained whole beside adapters.
    """

    held: int
    routed: int
    weights: int
    routed_weights: int
    kept: float
    holes: float
    recomputed: float
    unit: int
    head: int
    whole: int


def of_rank(card: Family, dims: Dims, training: Training, length: int, share: Share = WHOLE) -> RankModel:
    """What a rank has of a model.

    Args:
        card: The family.
        dims: The model's dims.
        training: How it is trained.
        length: Tokens of a row, padding included.
        share: What the rank has of the model.
    """
    rows = tensors_of(card, dims, share)
    kept, holes, recomputed, unit = _activations(card, dims, training, length, rows, share)
    tables = [t for t in rows if base_slot(t.slot) in ("embed", "head")]
    unit = max([unit, *(t.size for t in tables)])
    trained = [t.size for t in tables if training.method == "full" or t.name in training.whole]
    head = max(trained) if trained and share.last else 0
    whole = _size([t for t in rows if t.name in training.whole])
    routed = [t for t in rows if t.expert is not None]
    weights, routed_weights = (_weights(part, training) for part in (rows, routed))
    return RankModel(_size(rows), _size(routed), weights, routed_weights, kept, holes, recomputed, unit, head, whole)


def estimate(card: Family, dims: Dims, training: Training, batch: MicroBatch, share: Share = WHOLE) -> dict[str, int]:
    """Bytes by part; ``peak`` adds them up.

    Args:
        card: The family.
        dims: The model's dims.
        training: How it is trained.
        batch: The largest micro-batch.
        share: What the rank has of the model and of a step.
    """
    model = of_rank(card, dims, training, batch.length, share)
    return parts_of(model, card.count(dims), int(dims.vocab), training, batch, share)


def parts_of(
    model: RankModel, parameters: int, vocab: int, training: Training, batch: MicroBatch, share: Share
) -> dict[str, int]:
    """Bytes by part.

    Args:
        model: What the rank has of the model.
        parameters: Parameters of the whole model.
        vocab: Rows of its embedding.
        training: How it is trained.
        batch: The largest micro-batch.
        share: What the rank has of the model and of a step.
    """
    width, held, weights = training.width, model.held, model.weights
    reference = held * width if training.reference else 0
    trained, routed = (
        of if training.method == "full" else -(-training.trained * of // parameters) for of in (held, model.routed)
    )
    adapters = 0 if training.method == "full" else trained
    trained += model.whole
    own = share.sliced(trained, routed)
    if share.stage == 3 and share.sharding > 1:
        weights = share.sliced(weights, model.routed_weights) + 2 * model.unit * width
        reference = share.sliced(reference, model.routed * width) if reference else 0
    states = own * (3 * FLOAT if training.masters else 2 * width)
    of_pass, sums = _gradients(training, share, trained, own, model.unit)
    earlier = (sums or of_pass) if training.accumulated else 0
    return {
        "process": PROCESS + TOKEN * vocab,
        "weights": weights,
        "adapters": adapters * width,
        "reference model": reference,
        "optimizer": 0 if share.offload else states,
        "averaged weights": own * (FLOAT if training.masters else width) if training.average else 0,
        "activations": int(model.kept * batch.tokens * share.passes) * width,
        "fragmentation": int(model.holes * batch.tokens) * width,
        "logits": (training.logits * batch.labels * -(-vocab // share.tensor) + model.head) * width
        if share.last
        else 0,
        "gradients": of_pass + sums - earlier,
        "accumulated gradients": earlier,
        "recomputed layer": int(model.recomputed * batch.tokens) * width,
        "buckets": 2 * min(share.bucket, trained * width),
    }


def _gradients(training: Training, share: Share, trained: int, own: int, unit: int) -> tuple[int, int]:
    """Bytes of gradients of a pass, and where they differ of those that are added up over the passes of a step."""
    sharded = share.sharding > 1 and share.stage > 1
    of_pass = min(trained, 2 * unit) if sharded and share.stage == 3 else trained
    if training.masters:
        return of_pass * training.width, (own if sharded else trained) * FLOAT
    return of_pass * training.width, own * training.width if sharded else 0


def cache_bytes(dims: Dims, tokens: int) -> int:
    """Bytes of the KV cache of ``tokens`` tokens, in generation, in the type that it has by default."""
    layers, kv_heads, head_dim = int(dims.layers), int(dims.kv_heads), int(dims.head_dim)
    return 2 * layers * kv_heads * head_dim * tokens * KV_BYTES[default_kv(layers, kv_heads, head_dim)]


def _size(rows: list[Tensor]) -> int:
    return sum(t.size for t in rows)


def _weights(rows: list[Tensor], training: Training) -> int:
    total = _size(rows) * training.width
    if not training.base_bits:
        return total
    packed = _size([t for t in rows if t.kind == "linear" and t.layer is not None])
    return total - packed * training.width + int(packed * training.base_bits / 8)


def _activations(
    card: Family, dims: Dims, training: Training, length: int, tensors: list[Tensor], share: Share
) -> tuple[float, float, float, int]:
    """For each token the values that layers keep for the backward pass, holes, and those of the largest recomputed layer with its
    gradients; the largest layer's weights.
    """
    layers: dict[int, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.layer is not None:
            layers.setdefault(tensor.layer, []).append(tensor)
    kept = holes = largest = 0.0
    unit = 0
    shared = share.tensor if share.sequence else 1
    hidden = int(dims.hidden) / shared
    seen: dict[tuple[int, ...], tuple[float, float, float, float]] = {}
    for index, rows in layers.items():
        # Layers with the same rows of the table keep the same.
        alike = tuple(id(t.param) for t in rows)
        if alike not in seen:
            attention = _attention(card, dims, rows, training, length, share)
            seen[alike] = (
                attention,
                _feed_forward(dims, rows, training, shared),
                _attention_holes(dims, rows, training, length, share),
                _feed_forward_holes(dims, rows, training, shared),
            )
        attention, rest, *freed = seen[alike]
        recompute = training.recompute if index % training.recompute_interval == 0 else "none"
        stored = {"none": attention + rest, "attention": rest + hidden, "full": hidden}[recompute]
        left = {"none": sum(freed), "attention": freed[1], "full": 0.0}[recompute]
        kept += stored
        holes += left
        if recompute != "none":
            wide = sum(_output(t, shared) for t in rows if base_slot(t.slot) == "ffn1" and t.expert is None)
            largest = max(largest, attention + rest + sum(freed) - stored - left + wide + 2 * hidden)
        unit = max(unit, sum(t.size for t in rows))
    # Outside the layers norms keep their inputs, unless nothing before them is trained, and the head, or the next stage, its own.
    norms = {base_slot(t.slot) for t in tensors if t.kind == "norm" and t.layer is None}
    if training.method != "full":
        norms &= {"final_ln"}
    return kept + max(1, len(norms) + share.last) * hidden, holes, largest, unit


def _attention(card: Family, dims: Dims, rows: list[Tensor], training: Training, length: int, share: Share) -> float:
    """Values per token of the norm, the projections, and queries and keys before RoPE and scores if they are stored."""
    shared = share.tensor if share.sequence else 1
    values = _norms(rows, ("ln",)) / shared + _norms(rows, ("q_norm", "k_norm"))
    values += _linears(rows, ("qkv", "out"), training, shared)
    if card.position.startswith("rope") and not training.fused_attention:
        values += sum(t.shape[-1] for t in rows if base_slot(t.slot) == "qkv") * 2 / 3
    if _scores(dims, training):
        values += (2 + 1 / training.width if _dropout(dims) else 1) * int(dims.heads) / share.tensor * length
    return values


def _scores(dims: Dims, training: Training) -> bool:
    """Whether attention scores are stored."""
    return _dropout(dims) or not training.fused_attention


def _dropout(dims: Dims) -> bool:
    return any(dims.get(name) for name in ("attention_dropout", "dropout"))


def _feed_forward(dims: Dims, rows: list[Tensor], training: Training, shared: int) -> float:
    """Values per token of the norm and the feed-forward layer; with experts, of those that a token is routed to."""
    values = _norms(rows, ("ffn_ln",)) / shared
    plain = [t for t in rows if t.expert is None]
    experts = [t for t in rows if t.expert is not None]
    values += _linears(plain, ("ffn1", "ffn2"), training, shared)
    if experts:
        top_k = int(dims.get("top_k") or 2)
        numbers = sorted({t.expert for t in experts if t.expert is not None})
        each = (_linears([t for t in experts if t.expert == e], ("ffn1", "ffn2"), training, shared) for e in numbers)
        values += top_k / len(numbers) * sum(each)
        # The router keeps its input.
        values += int(dims.hidden)
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


def _linears(rows: list[Tensor], slots: tuple[str, ...], training: Training, shared: int) -> float:
    """Values per token of inputs, shared by parallel linears, and of outputs that are not added to the residual; with an
    adapter, of what that keeps.

    With sequence parallelism each of ``shared`` ranks keeps a part of the outputs that are added up over ranks.
    """
    inputs: dict[str, int] = {}
    outputs = 0.0
    for tensor in rows:
        if tensor.kind == "linear" and base_slot(tensor.slot) in slots:
            inputs[base_slot(tensor.slot)] = tensor.shape[0]
            if base_slot(tensor.slot) in ("qkv", "ffn1") or tensor.expert is not None:
                outputs += _output(tensor, shared)
            if _adapted(tensor, training):
                outputs += training.rank + training.magnitude * _output(tensor, shared)
                # Besides the values a byte for each, whether it was dropped.
                outputs += training.dropout * tensor.shape[0] * (1 + 1 / training.width)
    return sum(inputs.values()) + outputs


def _attention_holes(dims: Dims, rows: list[Tensor], training: Training, length: int, share: Share) -> float:
    """Values per token that attention frees and whose room nothing narrower uses.

    Of queries, keys and values before RoPE, or before packed ones are split, that is a third, and of scores before the mask and
    before softmax one of the two: the others' room has a place for what comes next.
    """
    shared = share.tensor if share.sequence else 1
    values = sum(_output(t, shared) for t in rows if t.kind == "linear" and base_slot(t.slot) == "qkv") / 3
    values += _holes(rows, ("out",), shared) + _products(rows, ("qkv", "out"), training, shared)
    if _scores(dims, training):
        values += int(dims.heads) / share.tensor * length
    return values


def _feed_forward_holes(dims: Dims, rows: list[Tensor], training: Training, shared: int) -> float:
    """As ``_attention_holes``; low-rank products that are wider than the layer leave their room to others."""
    values = _holes(rows, ("ffn2",), shared) + _products(rows, ("ffn2",), training, shared)
    if any(t.expert is not None for t in rows):
        # Their inputs and outputs in the order of the experts.
        values += 2 * int(dims.get("top_k") or 2) * int(dims.hidden)
    return values


def _holes(rows: list[Tensor], slots: tuple[str, ...], shared: int) -> float:
    """Values per token of outputs that are added to the residual."""
    return sum(
        _output(t, shared) for t in rows if t.kind == "linear" and base_slot(t.slot) in slots and t.expert is None
    )


def _products(rows: list[Tensor], slots: tuple[str, ...], training: Training, shared: int) -> float:
    """Values per token of low-rank products."""
    return _holes([t for t in rows if _adapted(t, training)], slots, shared)


def _output(tensor: Tensor, shared: int) -> float:
    return tensor.shape[1] / (shared if by_inputs(tensor) else 1)


def _adapted(tensor: Tensor, training: Training) -> bool:
    return tensor.name.removesuffix(".weight") in training.targets


def peak(parts: Mapping[str, int]) -> int:
    """The peak in bytes: when the last gradients come, logits and the activations of nearly all layers are freed."""
    early = parts["activations"] + parts["fragmentation"] + parts["logits"]
    return sum(parts.values()) - min(early, parts["gradients"])
