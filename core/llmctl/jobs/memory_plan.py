"""What memory a checked job will need at its peak, by part, and the largest batch that fits. No paddle here.

What a step holds is estimated in ``memory_estimate``, from the family's card; the steps are those of the job's own data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llmctl.adapters import targets
from llmctl.card.capabilities import Unsupported
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.card.support import state
from llmctl.checkpoint.build import CheckedModel
from llmctl.config import schema
from llmctl.config.common import MethodConfig
from llmctl.config.file import override
from llmctl.jobs import memory_estimate, precision, quantized_base
from llmctl.jobs.job import CheckedJob
from llmctl.jobs.memory_estimate import MicroBatch, Training
from llmctl.jobs.shares import of_ranks
from llmctl.parallel.arrangement import arrange, least_size
from llmctl.parallel.topology import Topology
from llmctl.runtime import operators

MEASURED_STEPS = 200
"""Steps at the beginning of a run whose batches are looked at."""


class Steps(Protocol):
    """The part of a training task that makes its batches."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch."""

    @property
    def train(self) -> Sequence[Any]:
        """The rows."""

    def micro_batches(self, step: int) -> Sequence[Any]:
        """The batches of a step, from 1."""


@dataclass(frozen=True)
class Outline:
    """What a plan needs of a job.

    Attributes:
        command: Name of the command that runs it.
        config: The configuration, with lengths that fit the model.
        model: The model; its weights are not needed.
        devices: How many devices train; 0 = as few as the section ``parallel`` needs.
    """

    command: str
    config: Any
    model: CheckedModel
    devices: int = 0


def plan_memory(job: Outline, batch: MicroBatch, available: int, limit: int) -> dict[str, Any]:
    """The plan as ``llmctl plan --json`` prints it; sizes are in bytes.

    Args:
        job: The job.
        batch: Its largest micro-batch.
        available: Rows of the data, above which no batch is planned; 0 = not known.
        limit: Memory of the device.
    """
    dims = job.model.dims
    note = precision.of(job.config.model.dtype, job.config.train).note
    base = quantized_base.notes(job.model, job.config.method) if hasattr(job.config, "method") else ()
    training = training_of(job)
    parts = _estimate(job, training, batch)
    peak = memory_estimate.peak(parts)
    largest = _largest_batch_size(job, training, batch, limit, available)
    return {
        "command": job.command,
        "devices": topology_of(job).size,
        "fits": peak <= limit,
        "parts": {name: size for name, size in parts.items() if size},
        "peak": peak,
        **({"host_memory": _offloaded(job, training, batch)} if job.config.parallel.offload else {}),
        **({"precision": note} if note else {}),
        **({"base": base[0]} if base else {}),
        "tokens_per_micro_batch": batch.tokens,
        "rows_of_the_data": available or None,
        "memory": limit,
        "largest_batch": largest,
        "changes": [] if peak <= limit else _changes(job, batch, limit),
        "kv_cache_of_1000_tokens": memory_estimate.cache_bytes(dims, 1000),
    }


def _offloaded(job: Outline, training: Training, batch: MicroBatch) -> int:
    """Bytes of main memory for the states of the optimizer of a device."""
    parallel = dataclasses.replace(job.config.parallel, offload=False)
    there = dataclasses.replace(job, config=dataclasses.replace(job.config, parallel=parallel))
    return _estimate(there, training, batch)["optimizer"]


def measured_micro_batch(job: Outline, steps: Steps) -> MicroBatch:
    """The largest micro-batch at the beginning of a run.

    Args:
        job: The job.
        steps: What it trains on.
    """
    count = min(steps.steps_per_epoch, job.config.train.max_steps or MEASURED_STEPS, MEASURED_STEPS)
    return _largest_micro_batch(job, (batch for number in range(1, count + 1) for batch in steps.micro_batches(number)))


def full_micro_batch(job: Outline) -> MicroBatch:
    """The largest micro-batch where the data is not known: rows as long as they may be, every token with a label."""
    data = job.config.data
    length = data.seq_length if hasattr(data, "seq_length") else data.packed_length or data.max_length
    tokens = job.config.train.batch_size * length
    return MicroBatch(tokens, length, tokens)


def memory_of(job: Outline | CheckedJob[Any], batches: Iterable[Any]) -> tuple[dict[str, int], int]:
    """Bytes by part, and at the peak, of the largest of some micro-batches, on the rank that needs most.

    Args:
        job: The job.
        batches: The micro-batches, at least one.
    """
    parts = _estimate(job, training_of(job), _largest_micro_batch(job, batches))
    return {name: size for name, size in parts.items() if size}, memory_estimate.peak(parts)


def topology_of(job: Outline | CheckedJob[Any]) -> Topology:
    """The ranks of a job.

    Raises:
        ConfigError: The degrees do not fit the number of devices.
    """
    parallel = job.config.parallel
    return arrange(parallel, getattr(job, "devices", 0) or least_size(parallel))


def _estimate(job: Outline | CheckedJob[Any], training: Training, batch: MicroBatch) -> dict[str, int]:
    """Bytes by part, on the rank that needs most."""
    card, dims, config = job.model.plugin.card, job.model.dims, job.config
    topology = topology_of(job)
    training = dataclasses.replace(training, accumulated=config.train.grad_accumulation > topology.batch)
    shares = of_ranks(card, dims, config.parallel, topology, config.train.grad_accumulation)
    # Inner stages differ by the passes that they hold, of which the second has most, and by their layers.
    largest = max(shares, key=lambda share: len(share.layers or ()))
    chosen = [*shares[:2], largest, shares[-1]]
    return max(
        (memory_estimate.estimate(card, dims, training, batch, share) for share in chosen), key=memory_estimate.peak
    )


def _largest_micro_batch(job: Outline | CheckedJob[Any], batches: Iterable[Any]) -> MicroBatch:
    """The micro-batch that needs most memory."""
    sizes: dict[MicroBatch, None] = {}
    for batch in batches:
        rows, length = batch.arrays["input_ids"].shape
        labels = int((batch.arrays["labels"] != -100).sum()) if "labels" in batch.arrays else rows * length
        sizes[MicroBatch(rows * length, length, labels)] = None

    def weight(batch: MicroBatch) -> int:
        parts = memory_estimate.estimate(job.model.plugin.card, job.model.dims, Training(0), batch)
        return parts["activations"] + parts["logits"]

    return max(sizes, key=weight)


def training_of(job: Outline | CheckedJob[Any]) -> Training:
    """The settings of a job that determine its memory on a CPU."""
    config, card, dims = job.config, job.model.plugin.card, job.model.dims
    method: MethodConfig = getattr(config, "method", None) or MethodConfig()
    lora, dpo = method.name == "lora", getattr(config, "dpo", None)
    chosen = tuple(targets.choose(card, dims, method.targets)) if lora else ()
    whole = targets.modules_to_save(job.model.plugin, dims, method.modules_to_save) if lora else []
    compiled = operators.installed() and not operators.turned_off() and config.model.dtype != "float64"
    return Training(
        trained=_trainable_parameters(card, dims, method, chosen),
        method=method.name,
        rank=method.rank if lora else 0,
        targets=chosen,
        base_bits=_base_bits(job.model, method),
        average=bool(config.train.ema_decay),
        whole=tuple(tensor.name for tensor in whole),
        reference=dpo is not None
        and (method.name == "full" or bool(whole))
        and not (dpo.reference_free or dpo.precompute_reference),
        recompute=config.train.recompute,
        recompute_interval=config.train.recompute_interval,
        width=8 if config.model.dtype == "float64" else 4,
        fused_attention=compiled,
        magnitude=lora and method.dora,
        dropout=lora and method.dropout > 0,
        logits=1 if compiled and dpo is None else 2,
    )


def _base_bits(model: CheckedModel, method: MethodConfig) -> float:
    """Bits of a weight of a base that stays in codes, or is quantized in training; 0 = floats."""
    if model.scheme is not None and model.scheme.keeps_codes:
        return model.scheme.stored_bits
    return memory_estimate.BASE_BITS.get(method.base, 0.0) if method.name == "lora" else 0.0


def _trainable_parameters(card: Family, dims: Dims, method: MethodConfig, chosen: Sequence[str]) -> int:
    if method.name == "lora":
        linears = targets.linears(card, dims)
        return sum(sum(linears[path].shape) * method.rank + linears[path].shape[1] * method.dora for path in chosen)
    if method.name == "full":
        return card.count(dims)
    width, tokens = int(dims.kv_heads) * int(dims.head_dim), method.virtual_tokens
    keys = 2 * int(dims.layers) * width
    if not method.prefix_projection:
        return tokens * keys
    hidden = method.projection_hidden or width
    return tokens * width + (width + 1) * hidden + (hidden + 1) * keys


def _largest_batch_size(job: Outline, training: Training, batch: MicroBatch, limit: int, available: int) -> int:
    """The largest batch size whose peak is within the limit, rows being as long as the longest now; 0 = not even one."""

    def fits(rows: int) -> bool:
        parts = _estimate(job, training, _scaled(batch, rows))
        return memory_estimate.peak(parts) <= limit

    low, high, most = 0, 1, available or 1 << 20
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _scaled(batch: MicroBatch, rows: int) -> MicroBatch:
    """A micro-batch with another number of rows."""
    now = max(1, batch.tokens // batch.length)
    return dataclasses.replace(batch, tokens=batch.tokens * rows // now, labels=batch.labels * rows // now)


def _changes(job: Outline, batch: MicroBatch, limit: int) -> list[dict[str, Any]]:
    """Settings with which the job fits, each with its peak: single ones, or the fewest of those that are tried in a row."""
    train = job.config.train
    # Smaller batches add up gradients.
    several = _changed(job, [f"train.grad_accumulation={max(2, train.grad_accumulation)}"])
    size = max(1, _largest_batch_size(several, training_of(job), batch, limit, train.batch_size))
    smaller = [
        f"train.batch_size={size}",
        f"train.grad_accumulation={-(-train.batch_size * train.grad_accumulation // size)}",
    ]
    lora = ["method.name=lora"]
    quantize = [] if job.model.scheme and job.model.scheme.keeps_codes else [[*lora, "method.base=nf4"]]
    ways = [
        *([smaller] if size < train.batch_size else []),
        *([["train.recompute=full"]] if train.recompute == "none" else []),
        *([["dpo.precompute_reference=true"]] if _keeps_reference(job.config) else []),
        *([lora] if _may_be_lora(job) else []),
        *(quantize if _may_be_lora(job) or _is_lora(job.config) else []),
    ]
    found = [(way, _peak_with(job, batch, way)) for way in ways]
    fitting = [(way, peak) for way, peak in found if peak <= limit]
    together: list[str] = []
    for way in ways if not fitting else ():
        together = [*(one for one in together if one not in way), *way]
        peak = _peak_with(job, batch, together)
        if peak <= limit:
            fitting = [(together, peak)]
            break
    return [{"set": way, "peak": peak} for way, peak in fitting]


def _changed(job: Outline, assignments: Sequence[str]) -> Outline:
    config = job.config
    changed = schema.build(type(config), override(schema.to_dict(config), assignments))
    return dataclasses.replace(job, config=changed)


def _peak_with(job: Outline, batch: MicroBatch, assignments: Sequence[str]) -> int:
    other = _changed(job, assignments)
    rows = max(1, batch.tokens // batch.length)
    scaled = _scaled(batch, min(rows, other.config.train.batch_size))
    return memory_estimate.peak(_estimate(other, training_of(other), scaled))


def _keeps_reference(config: Any) -> bool:
    settings = getattr(config, "dpo", None)
    if settings is None or not (config.method.name == "full" or config.method.modules_to_save):
        return False
    return not (settings.precompute_reference or settings.reference_free)


def _is_lora(config: Any) -> bool:
    method = getattr(config, "method", None)
    return method is not None and method.name == "lora" and method.base == "float"


def _may_be_lora(job: Outline) -> bool:
    method = getattr(job.config, "method", None)
    return (
        method is not None
        and method.name == "full"
        and not isinstance(state(job.model.plugin.card, "lora"), Unsupported)
    )
