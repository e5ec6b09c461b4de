"""What memory a checked job will need at its peak, by part, and the largest batch that fits. No paddle here.

What a step holds is estimated in ``memory_estimate``, from the family's card; the steps are those of the job's own data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from llmctl.adapters import targets
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.config.common import MethodConfig
from llmctl.jobs import memory_estimate, precision
from llmctl.jobs.job import CheckedJob
from llmctl.jobs.memory_estimate import Step, Training
from llmctl.runtime import operators

MEASURED_STEPS = 200
"""Steps at the beginning of a run whose batches are looked at."""


class Steps(Protocol):
    """The part of a training task that makes its batches."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the data."""

    def micro_batches(self, step: int) -> Sequence[Any]:
        """The batches of a step, from 1."""


def plan_memory(job: CheckedJob[Any], steps: Steps, limit: int) -> dict[str, Any]:
    """The plan as ``llmctl plan --json`` prints it; sizes are in bytes.

    Args:
        job: The job.
        steps: What it trains on.
        limit: Memory of the device.
    """
    card, dims = job.model.plugin.card, job.model.dims
    note = precision.of(job.config.model.dtype, job.config.train).note
    count = min(steps.steps_per_epoch, job.config.train.max_steps or MEASURED_STEPS, MEASURED_STEPS)
    batches = (batch for number in range(1, count + 1) for batch in steps.micro_batches(number))
    step, training = _largest_step(job, batches), _training(job)
    parts = memory_estimate.estimate(card, dims, training, step)
    return {
        "command": job.command,
        "parts": {name: size for name, size in parts.items() if size},
        "peak": memory_estimate.peak(parts),
        **({"precision": note} if note else {}),
        "tokens_of_a_pass": step.tokens,
        "memory": limit,
        "largest_batch": _largest_batch(job, training, step, limit),
        "kv_cache_of_1000_tokens": memory_estimate.cache_bytes(card, dims, 1000),
    }


def memory_of(job: CheckedJob[Any], batches: Iterable[Any]) -> tuple[dict[str, int], int]:
    """Bytes by part, and at the peak, of the largest of some forward passes.

    Args:
        job: The job.
        batches: The batches, at least one.
    """
    card, dims = job.model.plugin.card, job.model.dims
    parts = memory_estimate.estimate(card, dims, _training(job), _largest_step(job, batches))
    return {name: size for name, size in parts.items() if size}, memory_estimate.peak(parts)


def _largest_step(job: CheckedJob[Any], batches: Iterable[Any]) -> Step:
    """The forward pass that needs most."""
    passes: dict[Step, None] = {}
    for batch in batches:
        rows, length = batch.arrays["input_ids"].shape
        labels = int((batch.arrays["labels"] != -100).sum()) if "labels" in batch.arrays else rows * length
        passes[Step(rows * length, length, labels)] = None

    def weight(step: Step) -> int:
        parts = memory_estimate.estimate(job.model.plugin.card, job.model.dims, Training(0), step)
        return parts["activations"] + parts["scores"]

    return max(passes, key=weight)


def _training(job: CheckedJob[Any]) -> Training:
    config, card, dims = job.config, job.model.plugin.card, job.model.dims
    method: MethodConfig = getattr(config, "method", None) or MethodConfig()
    lora, dpo = method.name == "lora", getattr(config, "dpo", None)
    chosen = tuple(targets.choose(card, dims, method.targets)) if lora else ()
    return Training(
        trained=_trainable_parameters(card, dims, method, chosen),
        method=method.name,
        rank=method.rank if lora else 0,
        targets=chosen,
        base=method.base if lora else "float",
        average=bool(config.train.ema_decay),
        reference=dpo is not None and method.name == "full" and not (dpo.reference_free or dpo.precompute_reference),
        recompute=config.train.recompute,
        recompute_interval=config.train.recompute_interval,
        width=8 if config.model.dtype == "float64" else 4,
        fused_attention=operators.installed() and not operators.turned_off() and config.model.dtype != "float64",
    )


def _trainable_parameters(card: Family, dims: Dims, method: MethodConfig, chosen: Sequence[str]) -> int:
    if method.name == "lora":
        linears = targets.linears(card, dims)
        return sum(sum(linears[path].shape) * method.rank for path in chosen)
    if method.name == "full":
        return card.count(dims)
    width, tokens = int(dims.kv_heads) * int(dims.head_dim), method.virtual_tokens
    keys = 2 * int(dims.layers) * width
    if not method.prefix_projection:
        return tokens * keys
    hidden = method.projection_hidden or width
    return tokens * width + (width + 1) * hidden + (hidden + 1) * keys


def _largest_batch(job: CheckedJob[Any], training: Training, step: Step, limit: int) -> int:
    """The largest batch size whose peak is within the limit, rows being as long as the longest now; 0 = not even one."""
    size = max(1, job.config.train.batch_size)

    def peak(rows: int) -> int:
        scaled = dataclasses.replace(step, tokens=step.tokens * rows // size, labels=step.labels * rows // size)
        parts = memory_estimate.estimate(job.model.plugin.card, job.model.dims, training, scaled)
        return memory_estimate.peak(parts)

    low, high = 0, 1
    while high < 1 << 20 and peak(high) <= limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if peak(middle) <= limit else (low, middle)
    return low
