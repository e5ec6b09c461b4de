"""How a number of devices best shares the steps of a job: memory and seconds of an arrangement, and the fastest that fits.

No paddle here. Every arrangement that the model allows is estimated; forward passes are made smaller, and layers recomputed, where
that is what fits, but a step keeps its rows.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.card.slots import base_slot
from llmctl.errors import ConfigError
from llmctl.io.sizes import parse_bytes
from llmctl.jobs import degrees, memory_estimate, memory_plan
from llmctl.jobs.memory_estimate import MicroBatch, Training
from llmctl.jobs.memory_plan import Outline
from llmctl.jobs.shares import Share, divided, in_flight, stages_of, tensors_of
from llmctl.parallel.costs import step as costs
from llmctl.parallel.costs.hardware import Hardware
from llmctl.parallel.costs.step import Plan, Seconds, Work
from llmctl.parallel.topology import Topology

MARGIN = 0.94
"""Share of a device's memory that is planned with; the rest is for its context, kernels and fragments."""

INSIDE = ("q_norm", "k_norm", "gate")
"""Slots of tensors that are inside what tensor parallel ranks share, and are on each of them."""

ADDED = ("tensors", "partial", "ends", "outer", "routed_tensors", "table", "head")

WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Arrangement:
    """A way to share the steps of a job.

    Attributes:
        plan: How ranks share a step.
        rows: Rows of a micro-batch.
        recompute: Value of ``train.recompute``.
    """

    plan: Plan
    rows: int
    recompute: str = "none"


@dataclass(frozen=True)
class Estimate:
    """What an arrangement costs.

    Attributes:
        arrangement: The arrangement.
        parts: Bytes by part, of the rank that needs most.
        peak: Their peak.
        host: Bytes of the machine's memory for each device.
        limit: Bytes of the device that are planned with.
        host_limit: Bytes of the machine's memory for each device.
        seconds: Seconds of a step, of the slowest stage.
    """

    arrangement: Arrangement
    parts: Mapping[str, int]
    peak: int
    host: int
    limit: int
    host_limit: int
    seconds: Seconds

    @property
    def fits(self) -> bool:
        """Whether both memories suffice."""
        return self.peak <= self.limit and self.host <= self.host_limit


@dataclass(frozen=True)
class _Stage:
    """What a rank of a stage has, for any batch."""

    model: memory_estimate.RankModel
    share: Share
    layers: int
    mixtures: int
    matrix: float
    tensors: int = 0
    partial: int = 0
    ends: int = 0
    outer: int = 0
    routed_tensors: int = 0
    table: int = 0
    head: int = 0


@dataclass
class Planner:
    """Estimates arrangements of a job on devices of a kind.

    Args:
        job: The job; of its model only the dims are needed.
        hardware: The devices.

    Attributes:
        global_batch: Rows of an optimizer step, however they are divided into micro-batches.
    """

    job: Outline
    hardware: Hardware
    _stages: dict[Any, _Stage] = field(default_factory=dict)
    _alike: dict[int, int] = field(default_factory=dict)
    _cuts: dict[int, list[tuple[int, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.job.config
        self.card: Family = self.job.model.plugin.card
        self.dims: Dims = self.job.model.dims
        self.global_batch = config.train.batch_size * config.train.grad_accumulation
        self.length = memory_plan.full_micro_batch(self.job).length
        self.training = gpu_training(self.job)
        self.parameters = self.card.count(self.dims)
        experts = {t.expert for t in self.card.expand(self.dims)} - {None}
        self.experts, self.top_k = len(experts), int(self.dims.get("top_k") or 2)

    def estimate(self, arrangement: Arrangement) -> Estimate:
        """Memory and seconds of an arrangement.

        Args:
            arrangement: The arrangement.
        """
        plan, training = arrangement.plan, dataclasses.replace(self.training, recompute=arrangement.recompute)
        topology = plan.topology
        passes = -(-self.global_batch // arrangement.rows // topology.batch)
        training = dataclasses.replace(training, accumulated=passes > 1)
        tokens = arrangement.rows * self.length
        found: list[tuple[dict[str, int], int, Seconds, int]] = []
        sizes = [len(layers) for layers in self._layers(topology.pipeline)]
        for number in sorted({0, min(1, topology.pipeline - 1), sizes.index(max(sizes)), topology.pipeline - 1}):
            stage = self._stage(plan, training, number)
            held = in_flight(topology.pipeline, plan.chunks, passes, number)
            share = dataclasses.replace(stage.share, passes=held, bucket=_bucket(self.job.config, topology))
            parts = memory_estimate.parts_of(
                stage.model,
                self.parameters,
                int(self.dims.vocab),
                training,
                MicroBatch(tokens, self.length, tokens),
                share,
            )
            work = self._work(stage, training, passes, tokens)
            seconds = costs.seconds(work, plan, self.hardware, share.first, share.last)
            found.append((parts, memory_estimate.peak(parts), seconds, costs.updated(work, topology)))
        parts, peak, *_ = max(found, key=lambda one: one[1])
        states = 12 if training.masters else 2 * training.width
        host = states * max(one[3] for one in found) if plan.offload else 0
        return Estimate(
            arrangement,
            {name: size for name, size in parts.items() if size},
            peak,
            host,
            int(self.hardware.memory * MARGIN),
            int(self.hardware.host_memory * MARGIN),
            max((one[2] for one in found), key=lambda seconds: seconds.total),
        )

    def best(self, devices: int, count: int = 5) -> list[Estimate]:
        """The fastest arrangements that fit, one for each topology; without any, those that need least memory.

        Args:
            devices: How many devices there are.
            count: How many to return at most.

        Raises:
            ConfigError: The rows of a step cannot be shared by so many devices.
        """
        found: dict[Topology, Estimate] = {}
        for offload in (False, True):
            for plan in self.plans(devices, offload):
                estimate = self.of_plan(plan)
                if estimate and (plan.topology not in found or _order(estimate) < _order(found[plan.topology])):
                    found[plan.topology] = estimate
            if any(estimate.fits for estimate in found.values()):
                break
        if not found:
            raise ConfigError(
                f"{devices} devices cannot share steps of {self.global_batch} rows of this model; raise train.batch_size or "
                "train.grad_accumulation, or take fewer devices"
            )
        return sorted(found.values(), key=_order)[:count]

    def of_plan(self, plan: Plan) -> Estimate | None:
        """The fastest estimate of a plan over sizes of passes and recomputation; None if its ranks have no pass each."""
        estimates = [
            self.estimate(Arrangement(plan, rows, recompute))
            for rows in _divisors(self.global_batch)
            if self.global_batch // rows >= plan.topology.batch
            for recompute in dict.fromkeys((self.training.recompute, "full"))
        ]
        return min(estimates, key=_order, default=None)

    def plans(self, devices: int, offload: bool = False) -> Iterator[Plan]:
        """Every plan for so many devices that the model allows.

        Args:
            devices: How many.
            offload: Whether the optimizer is in main memory.
        """
        for tensor in self.tensor_degrees(devices):
            for pipeline in _divisors(devices // tensor):
                batch = devices // tensor // pipeline
                if pipeline > int(self.dims.layers) or batch > self.global_batch:
                    continue
                for sharding in _divisors(batch):
                    for expert in self.expert_degrees(batch):
                        topology = Topology(batch // sharding, tensor, pipeline, sharding, expert)
                        for stage in (1, 2, 3) if sharding > 1 else (1,):
                            yield Plan(topology, tensor > 1, stage, offload=offload)

    def tensor_degrees(self, devices: int) -> list[int]:
        """The tensor degrees that divide devices and model, within a machine."""
        most = min(devices, self.hardware.node)
        base = degrees.base_of(getattr(self.job.config, "method", None))
        return [n for n in _divisors(devices) if n <= most and degrees.divides(self.card, self.dims, base, n)]

    def expert_degrees(self, batch: int) -> list[int]:
        """The expert degrees that divide experts and ranks with different rows."""
        return [n for n in _divisors(batch) if n == 1 or (self.experts and self.experts % n == 0)]

    def _stage(self, plan: Plan, training: Training, number: int) -> _Stage:
        """What a rank of a stage has: the sum of what it has outside the layers, and of each of its layers."""
        topology = plan.topology
        stage = plan.stage if topology.sharding > 1 else 1
        sharding = topology.sharding, topology.expert_sharding, stage, plan.offload
        key = topology.tensor, topology.pipeline, topology.expert, plan.sequence, sharding, training.recompute, number
        if key not in self._stages:
            layers = self._layers(topology.pipeline)[number]
            first, last = number == 0, number == topology.pipeline - 1
            empty = Share(topology.tensor, plan.sequence, topology.expert, *sharding, layers=(), first=first, last=last)
            parts = [(1, self._part(empty, training))]
            for kind, count in Counter(self._kinds(layers, training)).items():
                parts.append((count, self._part(self._of_layer(empty, kind), training)))
            whole = memory_estimate.RankModel(
                sum(count * part.model.held for count, part in parts),
                sum(count * part.model.routed for count, part in parts),
                sum(count * part.model.weights for count, part in parts),
                sum(count * part.model.routed_weights for count, part in parts),
                sum(count * part.model.kept for count, part in parts),
                sum(count * part.model.holes for count, part in parts),
                max(part.model.recomputed for _, part in parts),
                max(part.model.unit for _, part in parts),
                max(part.model.head for _, part in parts),
                sum(count * part.model.whole for count, part in parts),
            )
            mixtures = sum(count * part.mixtures for count, part in parts)
            matrix = sum(count * part.matrix for count, part in parts)
            more = {name: sum(count * getattr(part, name) for count, part in parts) for name in ADDED}
            share = dataclasses.replace(empty, layers=layers)
            self._stages[key] = _Stage(whole, share, len(layers), mixtures, matrix, **more)
        return self._stages[key]

    def _layers(self, pipeline: int) -> list[tuple[int, ...]]:
        """The layers of each stage."""
        if pipeline not in self._cuts:
            self._cuts[pipeline] = stages_of(self.card, self.dims, self.job.config.parallel, pipeline)
        return self._cuts[pipeline]

    def _kinds(self, layers: Sequence[int], training: Training) -> Iterator[int]:
        """For each layer the first one that is like it."""
        if not self._alike:
            tables: dict[int, list[int]] = {}
            for tensor in self.card.expand(self.dims):
                if tensor.layer is not None:
                    tables.setdefault(tensor.layer, []).append(id(tensor.param))
            seen: dict[tuple[Any, ...], int] = {}
            for layer, table in tables.items():
                recomputed = layer % training.recompute_interval == 0
                self._alike[layer] = seen.setdefault((recomputed, *table), layer)
        return (self._alike[layer] for layer in layers)

    def _of_layer(self, share: Share, layer: int) -> Share:
        return dataclasses.replace(share, layers=(layer,), first=False, last=False)

    def _part(self, share: Share, training: Training) -> _Stage:
        key = (share.tensor, share.sequence, share.expert, share.layers, share.first, share.last, training.recompute)
        if key not in self._stages:
            self._stages[key] = self._measure(share, training)
        return self._stages[key]

    def _measure(self, share: Share, training: Training) -> _Stage:
        """What a rank has of some layers, or of what is outside them."""
        assert share.layers is not None
        rows = tensors_of(self.card, self.dims, share)
        model = memory_estimate.of_rank(self.card, self.dims, training, self.length, share)
        if share.layers:
            # What the states between the layers need is counted once, outside them.
            between = int(self.dims.hidden) / (share.tensor if share.sequence else 1)
            model = dataclasses.replace(model, kept=model.kept - between)
        in_layers = [t for t in rows if t.layer is not None and len(t.shape) == 2]
        plain = sum(t.size for t in in_layers if t.expert is None)
        # A rank computes as many tokens of experts as it has itself, whoever sent them.
        experts = sum(t.size for t in in_layers if t.expert is not None) * share.expert
        head = [t for t in rows if base_slot(t.slot) in ("head", "embed") and share.last]
        matrix = plain + experts * self.top_k / max(1, self.experts) + (head[-1].size if head else 0)
        attention = 2 * int(self.dims.heads) * int(self.dims.head_dim) * self.length * len(share.layers) / share.tensor
        mixtures = len({t.layer for t in in_layers if t.expert is not None})
        apart = [t for t in rows if t.layer is not None and not divided(t)]
        partial = sum(t.size for t in apart if share.sequence or base_slot(t.slot) in INSIDE)
        tied = not any(base_slot(t.slot) == "head" for t in self.card.expand(self.dims))
        embed, last = (sum(t.size for t in rows if base_slot(t.slot) == slot) for slot in ("embed", "head"))
        outer = sum(t.size for t in rows if t.layer is None)
        return _Stage(
            model, share, len(share.layers), mixtures, matrix + attention,
            tensors=len(rows), partial=partial, ends=embed if tied else 0, outer=outer,
            routed_tensors=sum(t.expert is not None for t in rows),
            table=embed * share.first if tied else embed, head=embed * share.last if tied else last,
        )  # fmt: skip

    def _work(self, stage: _Stage, training: Training, passes: int, tokens: int) -> Work:
        held = stage.model.held
        return Work(
            passes=passes,
            tokens=tokens,
            labels=tokens,
            hidden=int(self.dims.hidden),
            layers=stage.layers,
            mixtures=stage.mixtures,
            top_k=self.top_k,
            width=training.width,
            parameters=self._trained(training, stage.model),
            held=held,
            flops=2 * stage.matrix * tokens,
            recomputed=training.recompute == "full",
            tensors=stage.tensors,
            partial=stage.partial,
            ends=stage.ends,
            experts=self.experts,
            outer=stage.outer,
            table=stage.table,
            head=stage.head,
            routed=stage.model.routed,
            routed_tensors=stage.routed_tensors,
        )

    def _trained(self, training: Training, model: memory_estimate.RankModel) -> int:
        held = model.held
        return held if training.method == "full" else -(-training.trained * held // self.parameters) + model.whole


def gpu_training(job: Outline) -> Training:
    """The settings that determine the memory of a job on GPUs, whatever this machine has."""
    config = job.config
    half = config.model.dtype if config.train.amp == "off" else config.train.amp_dtype
    width = WIDTHS[half if config.train.amp != "O1" else "float32"]
    return dataclasses.replace(memory_plan.training_of(job), width=width, masters=width == 2, fused_attention=True)


def settings_of(estimate: Estimate, global_batch: int) -> list[str]:
    """The assignments of ``--set`` that make an arrangement.

    Args:
        estimate: The arrangement with its costs.
        global_batch: Rows of an optimizer step.
    """
    arrangement, plan = estimate.arrangement, estimate.arrangement.plan
    topology = plan.topology
    named = {
        "parallel.tensor": topology.tensor,
        "parallel.pipeline": topology.pipeline,
        "parallel.sharding": topology.sharding,
        "parallel.expert": topology.expert,
    }
    found = [f"{key}={degree}" for key, degree in named.items() if degree > 1]
    found += ["parallel.sequence=true"] * plan.sequence
    found += [f"parallel.sharding_stage={plan.stage}"] * (topology.sharding > 1)
    found += ["parallel.offload=true"] * plan.offload
    passes = -(-global_batch // arrangement.rows)
    found += [f"train.batch_size={arrangement.rows}", f"train.grad_accumulation={passes}"]
    return [*found, f"train.recompute={arrangement.recompute}"]


def _order(estimate: Estimate) -> tuple[Any, ...]:
    """Those that fit first, the fastest first; then those that need least."""
    topology = estimate.arrangement.plan.topology
    if estimate.fits:
        return (0, estimate.seconds.total, topology.pipeline, topology.tensor, estimate.peak)
    return (1, max(estimate.peak / estimate.limit, estimate.host / estimate.host_limit))


def _bucket(config: Any, topology: Topology) -> int:
    return parse_bytes(config.parallel.bucket) if topology.batch > 1 else 0


def _divisors(number: int) -> Sequence[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
