"""What a rank has of a model: the shapes of its tensors, and which layers. Nothing here imports paddle."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from llmctl.card.dims import Dims
from llmctl.card.family import Family, Tensor
from llmctl.card.shapes import CUT_SYMBOLS, Axis
from llmctl.card.slots import base_slot
from llmctl.config.parallel import ParallelConfig
from llmctl.io.sizes import parse_bytes
from llmctl.parallel.cuts import AFTER, layers_of
from llmctl.parallel.topology import Topology


@dataclass(frozen=True)
class Share:
    """What one of several ranks has of a model and of a step. The default is everything.

    Attributes:
        tensor: Ranks that share each layer.
        sequence: Whether they share the rest of a layer too, by positions.
        expert: Ranks that share the experts.
        sharding: Ranks that share what ``stage`` says.
        expert_sharding: Ranks that share it of the same experts.
        stage: 1 = states of the optimizer, 2 = and gradients, 3 = and weights.
        offload: Whether states of the optimizer are in main memory.
        layers: The layers of the rank's stage; None = all.
        first: Whether it is the first stage.
        last: Whether it is the last one.
        passes: Forward passes whose activations it holds at once, a fraction where stages have several parts.
        bucket: Bytes that are communicated together; 0 = nothing is.
    """

    tensor: int = 1
    sequence: bool = False
    expert: int = 1
    sharding: int = 1
    expert_sharding: int = 1
    stage: int = 1
    offload: bool = False
    layers: Sequence[int] | None = None
    first: bool = True
    last: bool = True
    passes: float = 1.0
    bucket: int = 0

    def sliced(self, total: int, routed: int) -> int:
        """Size of a rank's slices, from the size of everything and that of the experts in it, in parameters or in bytes."""
        return -(-(total - routed) // self.sharding) + -(-routed // self.expert_sharding)


def divided(tensor: Tensor) -> frozenset[str]:
    """The symbols of a tensor that tensor parallel ranks share; empty = each has all of it."""
    return _cut(tensor)[1]


def by_inputs(tensor: Tensor) -> bool:
    """Whether ranks share the inputs of a linear, so that their outputs are added up."""
    return len(tensor.shape) == 2 and _cut(tensor)[0] == 0 and tensor.kind == "linear"


def tensors_of(card: Family, dims: Dims, share: Share) -> list[Tensor]:
    """The tensors of a rank, in its shapes. A tied table is on the first and on the last stage.

    Args:
        card: The family.
        dims: The model's dims.
        share: What the rank has.
    """
    rows = card.expand(dims)
    tied = not any(base_slot(t.slot) == "head" for t in rows)
    kept = [t for t in rows if _of_stage(t, share, tied) and _of_experts(t, share)]
    if share.tensor == 1:
        return kept
    shapes: dict[int, tuple[int, ...]] = {}
    for t in kept:
        if id(t.param) not in shapes:
            shapes[id(t.param)] = _shape(t, dims, share.tensor)
    return [dataclasses.replace(t, shape=shapes[id(t.param)]) for t in kept]


def of_ranks(card: Family, dims: Dims, parallel: ParallelConfig, topology: Topology, passes: int) -> list[Share]:
    """What the ranks of each stage have, in the order of the stages.

    Args:
        card: The family.
        dims: The model's dims.
        parallel: The section of the configuration.
        topology: The ranks.
        passes: Forward passes of a step.
    """
    last = topology.pipeline - 1
    own = -(-passes // topology.batch)
    bucket = parse_bytes(parallel.bucket) if topology.batch > 1 else 0
    return [
        Share(
            topology.tensor, parallel.sequence, topology.expert, topology.sharding, topology.expert_sharding,
            parallel.sharding_stage, parallel.offload, layers, number == 0, number == last,
            in_flight(topology.pipeline, parallel.chunks, own, number), bucket,
        )
        for number, layers in enumerate(stages_of(card, dims, parallel, topology.pipeline))
    ]  # fmt: skip


def in_flight(stages: int, chunks: int, passes: int, number: int) -> float:
    """Passes whose activations a stage holds at once: one forward, one backward.

    Args:
        stages: Number of stages.
        chunks: Parts of each.
        passes: Forward passes of a step.
        number: The stage, from 0.
    """
    if chunks == 1:
        return min(passes, stages - number)
    return min(passes * chunks, 2 * (stages - number - 1) + (chunks - 1) * stages + 1) / chunks


def stages_of(card: Family, dims: Dims, parallel: ParallelConfig, pipeline: int) -> list[tuple[int, ...]]:
    """The layers of each stage.

    Args:
        card: The family.
        dims: The model's dims.
        parallel: The section of the configuration; its layers of stages count if they are for as many stages.
        pipeline: Number of stages.
    """
    by_hand = parallel.stages if len(parallel.stages) == pipeline else ()
    chunks = parallel.chunks if pipeline > 1 else 1
    parts = layers_of(card, dims, pipeline, by_hand, chunks)
    return [tuple(layer for part in parts[number::pipeline] for layer in part) for number in range(pipeline)]


def _of_stage(tensor: Tensor, share: Share, tied: bool) -> bool:
    if tensor.layer is not None:
        return share.layers is None or tensor.layer in share.layers
    slot = base_slot(tensor.slot)
    if slot == "embed" and tied:
        return share.first or share.last
    return share.last if slot in AFTER else share.first


def _of_experts(tensor: Tensor, share: Share) -> bool:
    return tensor.expert is None or tensor.expert % share.expert == 0


def _cut(tensor: Tensor) -> tuple[int, frozenset[str]]:
    """The axis that ranks share and the symbols in it; no symbols = none."""
    symbols = frozenset(CUT_SYMBOLS if tensor.param.shard is None else tensor.param.shard)
    for index, axis in enumerate(tensor.param.axes):
        if found := axis.symbols & symbols:
            return index, found
    return -1, frozenset()


def _shape(tensor: Tensor, dims: Dims, degree: int) -> tuple[int, ...]:
    index, symbols = _cut(tensor)
    if not symbols:
        return tensor.shape
    axes = enumerate(tensor.param.axes)
    return tuple(_length(axis, symbols, dims, degree) if i == index else tensor.shape[i] for i, axis in axes)


def _length(axis: Axis, symbols: frozenset[str], dims: Dims, degree: int) -> int:
    """Length of a shared axis on the rank that has most; ranks share kv heads if there are fewer."""
    total = 0
    for term in axis.terms:
        counts = [int(dims[factor]) for factor in term.factors if factor in symbols]
        parts = min(degree, counts[0]) if counts else 1
        total += term.size(dims) // counts[0] * -(-counts[0] // parts) if counts else term.size(dims)
    return total
