"""What a run says before its first step: what is trained, on what, and how much memory it will need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llmctl import runtime
from llmctl.jobs.job import CheckedJob
from llmctl.jobs.memory_plan import memory_of
from llmctl.jobs.precision import Precision
from llmctl.report.wording import count, size
from llmctl.runtime import memory
from llmctl.train.callbacks.base import LoopSettings
from llmctl.train.task import Task


def facts(
    job: CheckedJob[Any], model: Any, task: Task, settings: LoopSettings, precision: Precision, done: int
) -> dict[str, Any]:
    """What the banner says, by name; sizes are in bytes.

    Args:
        job: The job.
        model: The layer.
        task: What it is trained on.
        settings: How long.
        precision: Data types.
        done: Steps that are done already.
    """
    trained = sum(math.prod(p.shape) for p in model.parameters() if not p.stop_gradient)
    device = runtime.device()
    first = task.micro_batches(done + 1) if done < settings.max_steps else []
    parts, peak = memory_of(job, first) if first and device == "cpu" else ({}, 0)
    return {
        "family": job.model.plugin.card.name,
        "model": str(job.model.folder or ""),
        "parameters": job.model.plugin.card.count(job.model.dims),
        "trained": trained,
        "method": getattr(getattr(job.config, "method", None), "name", "full"),
        "device": device,
        "dtype": precision.params,
        "threads": int(dict(row[:2] for row in runtime.describe())["threads"]) if device == "cpu" else None,
        "steps": settings.max_steps - done,
        "steps_per_epoch": task.steps_per_epoch,
        "tokens_per_step": sum(batch.tokens for batch in first),
        "memory_estimate": peak or None,
        "memory_parts": parts,
        "memory_free": memory.host_memory() if parts else None,
        "output": str(job.output),
    }


def lines(found: Mapping[str, Any], verbose: bool = False) -> list[str]:
    """The banner.

    Args:
        found: Result of ``facts``.
        verbose: Also the parts of the memory.
    """
    share = found["trained"] / max(found["parameters"], 1)
    number = found["threads"]
    threads = f", {number} thread{'s' * (number > 1)}" if number else ""
    epochs = found["steps"] / max(found["steps_per_epoch"], 1)
    trains = f"{found['method']} trains {count(found['trained'])}"
    rows = [
        f"model: {found['family']}, {count(found['parameters'])} parameters; {trains} ({100 * share:.3g} %)",
        f"device: {found['device']}, {found['dtype']}{threads}",
        f"training: {found['steps']:,} steps ({epochs:.3g} epochs) of about {found['tokens_per_step']:,} tokens",
    ]
    if found["memory_estimate"]:
        free = f" of {size(found['memory_free'])} that are free" if found["memory_free"] else ""
        rows.append(f"memory: about {size(found['memory_estimate'])}{free}")
    if verbose:
        rows += [f"  {name}: {size(value)}" for name, value in found["memory_parts"].items()]
        rows.append(f"output: {found['output']}")
    return rows
