"""The section ``parallel`` of every training command: how several devices share a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmctl.config.schema import changed_fields, option, shown
from llmctl.errors import ConfigError
from llmctl.io.sizes import parse_bytes


@dataclass(kw_only=True)
class ParallelConfig:
    """How several devices share the work of a step; its rows and results are those of one device."""

    data: int = option(
        0,
        "Data parallel: groups of devices with a copy of the model each; 0 = as many as the devices allow.",
        minimum=0,
    )
    tensor: int = option(1, "Tensor parallel: devices that split each layer, by heads and columns.", minimum=1)
    sequence: bool = option(
        False, "Sequence parallel: outside the split layers, the devices of `tensor` split the activations by tokens."
    )
    pipeline: int = option(1, "Pipeline parallel: stages that the layers are divided into.", minimum=1)
    stages: list[int] = option([], "Layers of each stage; empty = balanced by their cost.", minimum=1)
    chunks: int = option(1, "Model chunks of each stage (interleaved 1F1B, virtual pipeline).", minimum=1)
    sharding: int = option(
        1,
        "Sharding (ZeRO, FSDP): data parallel devices that hold slices, not copies, of what `sharding_stage` says; 0 = as many as the devices allow.",
        minimum=0,
    )
    sharding_stage: int = option(
        1,
        "ZeRO stage: what is in slices. 1 = states of the optimizer, 2 = gradients too, 3 = weights too.",
        choices=(1, 2, 3),
    )
    expert: int = option(
        1,
        "Expert parallel: data parallel devices that divide the experts of a mixture; divides `data` x `sharding`.",
        minimum=1,
    )
    offload: bool = option(False, "CPU offload: keep the states of the optimizer in main memory and update there.")
    bucket: str | int = option(
        "100MB", "Bucket size: bytes of gradients or weights in one collective operation, such as 100MB."
    )
    hang_seconds: int = option(
        600,
        "Seconds in a collective operation after which the terminal says who waits for whom; on CPUs at most 25.",
        minimum=1,
    )


def check(parallel: ParallelConfig, train: Any) -> None:
    """Checks that the keys of the section fit each other, whatever the model and the number of devices.

    Args:
        parallel: The section.
        train: The section ``train``.

    Raises:
        ConfigError: They do not, or have no effect.
    """
    changed = set(changed_fields(parallel))
    needs = (
        ("sequence", "tensor", "parallel.sequence shares what the devices of parallel.tensor leave whole"),
        ("stages", "pipeline", "parallel.stages divides the layers among the stages of parallel.pipeline"),
        ("chunks", "pipeline", "parallel.chunks divides the stages of parallel.pipeline"),
        ("sharding_stage", "sharding", "parallel.sharding_stage says what the devices of parallel.sharding share"),
    )
    for key, other, why in needs:
        if key in changed and other not in changed:
            value = shown(getattr(parallel, key))
            more = " (or 0, all devices)" if other == "sharding" else ""
            raise ConfigError(
                f"parallel.{key}={value} needs parallel.{other} above 1{more}: {why}; set both, or neither"
            )
    if parallel.stages and len(parallel.stages) != parallel.pipeline:
        raise ConfigError(
            f"parallel.stages={parallel.stages} has length {len(parallel.stages)}, not that of parallel.pipeline={parallel.pipeline}; give "
            "the layers of each stage"
        )
    if parallel.chunks > 1:
        _check_chunks(parallel, train.grad_accumulation)
    parse_bytes(parallel.bucket, "parallel.bucket=")


def _check_chunks(parallel: ParallelConfig, passes: int) -> None:
    given = f"parallel.chunks={parallel.chunks}"
    if parallel.pipeline < 3:
        raise ConfigError(
            f"{given} needs parallel.pipeline of at least 3, not {parallel.pipeline}: with fewer stages nothing is "
            "gained; set it, or leave out parallel.chunks"
        )
    if passes < 2 * parallel.pipeline:
        raise ConfigError(
            f"{given} needs at least 2 x parallel.pipeline={2 * parallel.pipeline} micro-batches in a step, and there are "
            f"train.grad_accumulation={passes}; raise it (and lower train.batch_size for the same rows)"
        )
    if parallel.stages:
        raise ConfigError(f"{given}: model chunks are balanced by their cost; leave out parallel.stages")
    if parallel.sharding_stage == 3:
        raise ConfigError(f"{given} does not combine with parallel.sharding_stage=3; use stage 1 or 2, or no chunks")


def degrees(parallel: ParallelConfig) -> Mapping[str, int]:
    """The degrees of the section that are above 1, in the order of the axes: key -> degree."""
    keys = ("pipeline", "data", "sharding", "tensor")
    return {key: getattr(parallel, key) for key in keys if getattr(parallel, key) > 1}
