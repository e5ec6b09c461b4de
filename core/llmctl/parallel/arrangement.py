"""Which arrangement of devices a configuration asks for, and whether each has something to do. Nothing here imports paddle."""

from __future__ import annotations

import math

from llmctl.config.parallel import ParallelConfig, degrees
from llmctl.errors import ConfigError
from llmctl.parallel.topology import Topology


def least_size(parallel: ParallelConfig) -> int:
    """The smallest number of devices that a configuration can be trained on."""
    copies = max(1, parallel.data) * max(1, parallel.sharding)
    filled = 1 if parallel.data and parallel.sharding else parallel.expert // math.gcd(parallel.expert, copies)
    return _product(parallel) * filled


def _product(parallel: ParallelConfig) -> int:
    return math.prod(degrees(parallel).values())


def arrange(parallel: ParallelConfig, size: int) -> Topology:
    """The arrangement of some devices; ``parallel.sharding: 0``, else ``parallel.data: 0``, takes what the other degrees leave.

    Args:
        parallel: The section of the configuration.
        size: Number of devices.

    Raises:
        ConfigError: The degrees do not fit the number of devices.
    """
    asked, least = degrees(parallel), _product(parallel)
    product = " x ".join(f"parallel.{key}={degree}" for key, degree in asked.items())
    fixed = parallel.data and parallel.sharding
    if size % least or (fixed and size != least):
        devices = "1 device" if least == 1 else f"{least} devices"
        allowed = devices if fixed else f"{devices} or a multiple of that"
        there = f"there {'is' if size == 1 else 'are'} {size}"
        filled = "; with parallel.data=0 there are as many copies as the devices allow" if parallel.data > 1 else ""
        raise ConfigError(
            f"{product or 'parallel.data=1'} needs {allowed}, and {there}; start as many with --devices and --nnodes, or "
            f"change the degrees{filled}"
        )
    left = size // least
    sharding = parallel.sharding or left
    data = max(1, parallel.data) * (left if parallel.sharding else 1)
    batch = data * sharding
    if batch == 1 < parallel.expert:
        raise ConfigError(
            f"parallel.expert={parallel.expert} divides the experts among data parallel groups, and there is 1; start more devices "
            "with --devices, or leave it out"
        )
    if batch % parallel.expert:
        divisors = ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)
        raise ConfigError(
            f"parallel.expert={parallel.expert} does not divide the {batch} data parallel groups; use one of {divisors}"
        )
    return Topology(data, parallel.tensor, parallel.pipeline, sharding, parallel.expert)


def check_passes(grad_accumulation: int, batch_size: int, topology: Topology, chunks: int = 1) -> None:
    """Checks that each rank with rows of its own has enough micro-batches in every step.

    Args:
        grad_accumulation: Micro-batches of a step.
        batch_size: Rows of each.
        topology: The devices.
        chunks: Model chunks of each stage of a pipeline.

    Raises:
        ConfigError: It has not.
    """
    each = 2 * topology.pipeline if chunks > 1 else 1
    least = topology.batch * each
    if grad_accumulation < least:
        inside = topology.size // topology.batch
        groups = f"{topology.size} devices" if inside == 1 else f"{topology.batch} groups of {inside} devices"
        have, need = ("the pipeline has", "it needs") if topology.batch == 1 else (f"{groups} share", "each needs")
        raise ConfigError(
            f"{have} the train.grad_accumulation={grad_accumulation} micro-batches of a step, and {need} at least "
            f"{'one' if each == 1 else each}; set train.grad_accumulation={least} or a multiple of it"
            + _same_rows(batch_size * grad_accumulation, least)
        )


def _same_rows(rows: int, passes: int) -> str:
    """How a step of at least so many micro-batches keeps its rows."""
    if rows < passes:
        return f", which makes more than {rows} rows a step, or take fewer devices"
    size, count = (1, f" and train.grad_accumulation={rows}") if rows % passes else (rows // passes, "")
    return f" (with train.batch_size={size}{count} a step has as many rows as before)"
