"""What a step costs a rank: messages, their bytes, and seconds. Nothing here imports paddle.

Bytes are those of the whole tensor of a collective: what is reduced, the result of a gather, the input of a scatter. What a ring
sends for it is a factor of them (``FACTORS``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llmctl.parallel.costs.hardware import Hardware, Link
from llmctl.parallel.topology import DENSE, EXPERTS, Sharing, Topology

EFFICIENCY = 0.5
"""Assumed share of the data sheet's operations per second that a whole model reaches."""

UPDATE = 28
"""Bytes that the update of a parameter reads and writes: gradient, two moments and the weight in float32."""

FACTORS: Mapping[str, float] = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "all_to_all": 1, "send": 1}
"""Bytes sent by each of n ranks of a ring for a byte of the whole tensor, in units of (n - 1) / n; a message is one."""


@dataclass(frozen=True)
class Work:
    """A step as one rank sees it.

    Attributes:
        passes: Forward passes of the rank.
        tokens: Rows x columns of a pass.
        labels: Positions with logits of a pass.
        hidden: Width of the hidden states.
        layers: Layers of the rank's stage.
        mixtures: Layers of it with experts.
        top_k: Experts of a token.
        width: Bytes of an activation or weight.
        parameters: Trained parameters of the rank, after tensor and pipeline cuts.
        held: All parameters of the rank.
        flops: Operations of a forward pass on the rank.
        recomputed: Whether layers are computed again in the backward pass.
        tensors: How many trained tensors the rank has.
        partial: Parameters whose gradients tensor parallel ranks have parts of.
        ends: Parameters of a table that is embedding and head, which the first and the last stage have.
        experts: Experts of a mixture.
        outer: Of all its parameters, those outside the layers.
        table: Of these, those of embeddings, on the first stage.
        head: And those of the output head, on the last stage. On a rank in both a table that is both, ``ends``, is counted twice.
        routed: Of all its parameters, those of experts.
        routed_tensors: How many tensors of experts it trains.
    """

    passes: int
    tokens: int
    labels: int
    hidden: int
    layers: int
    mixtures: int
    top_k: int
    width: int
    parameters: int
    held: int
    flops: float
    recomputed: bool = False
    tensors: int = 0
    partial: int = 0
    ends: int = 0
    experts: int = 0
    outer: int = 0
    table: int = 0
    head: int = 0
    routed: int = 0
    routed_tensors: int = 0

    @property
    def trained(self) -> float:
        """The share of its parameters that is trained."""
        return self.parameters / self.held


@dataclass(frozen=True)
class Plan:
    """How ranks share a step.

    Attributes:
        topology: The ranks.
        sequence: Sequence parallel.
        stage: Stage of sharding.
        chunks: Parts of a stage.
        offload: Whether the optimizer is in main memory.
    """

    topology: Topology
    sequence: bool = False
    stage: int = 1
    chunks: int = 1
    offload: bool = False


@dataclass(frozen=True)
class Traffic:
    """Calls of a collective.

    Attributes:
        axis: An axis of the topology.
        op: A key of ``FACTORS``.
        calls: How many in a step.
        size: Bytes of the whole tensor of each.
    """

    axis: str
    op: str
    calls: int
    size: int


@dataclass(frozen=True)
class Kind:
    """What a rank has that the same ranks share.

    Attributes:
        sharing: The axes of these ranks.
        slices: How many have slices.
        copies: How many have copies.
        parameters: Trained parameters.
        tensors: How many trained tensors.
        layers: Layers of the rank's stage that have any.
        held: All parameters in these layers.
        rest: All parameters outside the layers that are in no table.
        table: Parameters of embeddings.
        head: Parameters of an output head, which may be the same.
    """

    sharing: Sharing
    slices: int
    copies: int
    parameters: int
    tensors: int
    layers: int
    held: int
    rest: int
    table: int = 0
    head: int = 0


def kinds_of(work: Work, topology: Topology) -> list[Kind]:
    """The kinds of what a rank has: experts that are divided, and all else.

    Args:
        work: The step.
        topology: The ranks.
    """
    inside, rest = work.held - work.outer, work.outer - (work.ends or work.table + work.head)
    tables = work.table, work.head
    if topology.expert == 1 or not work.routed:
        everything = work.parameters, work.tensors, work.layers, inside, rest
        return [Kind(DENSE, topology.sharding, topology.data, *everything, *tables)]
    trained = round(work.routed * work.trained)
    dense = work.parameters - trained, work.tensors - work.routed_tensors, work.layers, inside - work.routed, rest
    routed = trained, work.routed_tensors, work.mixtures, work.routed, 0
    return [
        Kind(DENSE, topology.sharding, topology.data, *dense, *tables),
        Kind(EXPERTS, topology.expert_sharding, topology.expert_data, *routed),
    ]


def updated(work: Work, topology: Topology) -> int:
    """How many parameters a rank updates.

    Args:
        work: The step.
        topology: The ranks.
    """
    return sum(-(-kind.parameters // kind.slices) for kind in kinds_of(work, topology))


def in_passes(work: Work, plan: Plan, first: bool, last: bool) -> list[Traffic]:
    """What a rank communicates in its forward and backward passes of a step.

    Args:
        work: The step.
        plan: How it is shared.
        first: Whether the rank is in the first stage.
        last: Whether it is in the last one.
    """
    topology, m = plan.topology, work.passes
    states = work.tokens * work.hidden * work.width
    found: list[Traffic] = []
    if topology.tensor > 1:
        # The ends of attention and feed-forward layer, forward and backward; again forward if it is recomputed.
        ends = 4 * work.layers
        again = 2 * work.layers if work.recomputed else 0
        if plan.sequence:
            found += [
                Traffic("tensor", "all_gather", m * (ends + again + first + last), states),
                Traffic("tensor", "reduce_scatter", m * (ends + again), states),
            ]
            found += [Traffic("tensor", "all_reduce", m, states)] * first
        else:
            found.append(Traffic("tensor", "all_reduce", m * (ends + again + first), states))
        if last:
            found += [
                Traffic("tensor", "all_reduce", m, work.labels * work.hidden * work.width),
                # The largest logit; then the sum of exponentials together with the label's logit.
                Traffic("tensor", "all_reduce", m, work.labels * 4),
                Traffic("tensor", "all_reduce", m, 2 * work.labels * 4),
            ]
    if topology.pipeline > 1:
        sent = states // (topology.tensor if plan.sequence else 1)
        ends = 2 - first - last + (2 if plan.chunks > 1 and (first or last) else 0)
        inner = 2 * (plan.chunks - 1)
        found.append(Traffic("pipeline", "send", m * (ends + inner), sent))
    if topology.expert > 1 and work.mixtures:
        routed = work.tokens * work.top_k * work.hidden * work.width
        found.append(Traffic("expert", "all_to_all", m * work.mixtures * (6 if work.recomputed else 4), routed))
        told = work.experts * topology.expert * 8
        found.append(Traffic("expert", "all_gather", m * work.mixtures * (2 if work.recomputed else 1), told))
    for kind in kinds_of(work, topology):
        found += _of_slices(work, plan, kind)
    return found


def _of_slices(work: Work, plan: Plan, kind: Kind) -> list[Traffic]:
    """What ranks with slices communicate in the passes of a step."""
    axis, m = kind.sharing.slices, work.passes
    if kind.slices == 1 or plan.stage == 1:
        return []
    if plan.stage == 2:
        return [Traffic(axis, "reduce_scatter", m, kind.parameters * work.width)]
    # Layers and output head are fetched before their forward and their backward pass, embeddings forward only; the rest, once in a step.
    units = [(kind.layers, 2, kind.held // kind.layers), (1, 1, kind.table), (1, 2, kind.head), (1, 0, kind.rest)]
    found = []
    for count, fetched, size in units:
        if size and fetched:
            found.append(Traffic(axis, "all_gather", fetched * m * count, size * work.width))
        if size:
            found.append(Traffic(axis, "reduce_scatter", m * count, round(size * work.width * work.trained)))
    return found


def in_update(work: Work, plan: Plan) -> list[Traffic]:
    """What a rank communicates once in a step.

    Args:
        work: The step.
        plan: How it is shared.
    """
    topology = plan.topology
    found: list[Traffic] = []
    if topology.tensor > 1 and work.partial:
        found.append(Traffic("tensor", "all_reduce", 1, work.partial * work.width))
    if topology.pipeline > 1 and work.ends:
        found.append(Traffic("ends", "all_reduce", 1, -(-work.ends // topology.sharding) * 4))
    for kind in kinds_of(work, topology):
        found += _of_gradients(work, plan, kind)
    return found


def _of_gradients(work: Work, plan: Plan, kind: Kind) -> list[Traffic]:
    """The sums of gradients, and the gathering of new weights."""
    found: list[Traffic] = []
    # First it is said which parameters any rank has a gradient of.
    said = kind.tensors * 4
    if kind.copies > 1:
        own = -(-kind.parameters // kind.slices)
        found += [Traffic(kind.sharing.copies, "all_reduce", 1, size) for size in (said, own * 4)]
    if kind.slices > 1:
        axis = kind.sharing.slices
        found.append(Traffic(axis, "all_reduce", 1, said))
        if plan.stage == 1:
            found.append(Traffic(axis, "reduce_scatter", 1, kind.parameters * 4))
        gathered = kind.rest if plan.stage == 3 else kind.parameters
        found += [Traffic(axis, "all_gather", 1, gathered * work.width)] * (gathered > 0)
    return found


def bubble(topology: Topology, passes: int, chunks: int = 1) -> float:
    """Share of the time that a pipeline waits, (p - 1) / (v m + p - 1).

    Args:
        topology: The ranks.
        passes: Forward passes of each pipeline in a step.
        chunks: Parts of a stage.
    """
    waits = topology.pipeline - 1
    return waits / (chunks * passes + waits)


def seconds_of(traffic: Iterable[Traffic], topology: Topology, hardware: Hardware) -> float:
    """Seconds of collectives that nothing overlaps.

    Args:
        traffic: The collectives.
        topology: The ranks.
        hardware: The devices.
    """
    return sum(one.calls * _seconds(one, topology, hardware) for one in traffic)


def _seconds(one: Traffic, topology: Topology, hardware: Hardware) -> float:
    ranks, link = link_of(one.axis, topology, hardware)
    if one.op == "send":
        return link.latency + one.size / link.bandwidth
    steps = (ranks - 1) * FACTORS[one.op]
    return steps * (link.latency + one.size / ranks / link.bandwidth)


@functools.lru_cache(maxsize=4096)
def link_of(axis: str, topology: Topology, hardware: Hardware) -> tuple[int, Link]:
    """Size of the groups of an axis, and the slowest connection between two of a group."""
    group = topology.peers(axis, 0)
    width = (group[1] - group[0]) * len(group) if len(group) > 1 else 1
    inside = topology.size <= hardware.node or hardware.node % width == 0
    return len(group), hardware.inside if inside else hardware.between


@dataclass(frozen=True)
class Seconds:
    """Seconds of a step.

    Attributes:
        compute: Forward and backward passes.
        communication: Collectives in passes and update.
        bubble: Waiting for the pipeline to fill and to drain.
        update: The update of weights.
    """

    compute: float
    communication: float
    bubble: float
    update: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.compute + self.communication + self.bubble + self.update


def seconds(work: Work, plan: Plan, hardware: Hardware, first: bool, last: bool) -> Seconds:
    """Seconds of a step on a rank.

    Args:
        work: The step.
        plan: How it is shared.
        hardware: The devices.
        first: Whether the rank is in the first stage of a pipeline.
        last: Whether it is in the last one.
    """
    topology = plan.topology
    speed = (hardware.half if work.width == 2 else hardware.single) * EFFICIENCY
    compute = work.passes * work.flops * (4 if work.recomputed else 3) / speed
    talk = seconds_of(in_passes(work, plan, first, last), topology, hardware)
    waits = bubble(topology, work.passes, plan.chunks)
    own = updated(work, topology)
    update = own * UPDATE / (hardware.host_bandwidth if plan.offload else hardware.memory_bandwidth)
    if plan.offload:
        update += own * (4 + work.width) / hardware.host_link
    after = seconds_of(in_update(work, plan), topology, hardware)
    return Seconds(compute, talk + after, (compute + talk) * waits / (1 - waits), update)
