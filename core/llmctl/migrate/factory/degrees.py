"""How LLaMA-Factory's configurations share a step over devices: DeepSpeed's ZeRO, FSDP, and the degrees of Megatron."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmctl.io.json_object import parse_json
from llmctl.migrate.dialect import Old, Values

DEGREES = {
    "tensor_model_parallel_size": "parallel.tensor",
    "pipeline_model_parallel_size": "parallel.pipeline",
    "expert_model_parallel_size": "parallel.expert",
}
"""Degree of Megatron -> new key; 1 is off."""

OWN = re.compile(r"ds_z([0-3])(_offload)?(_bf16)?(_autotp)?_config\.json")
"""Names of the files of DeepSpeed that LLaMA-Factory comes with."""

FSDP = {"full_shard": 3, "shard_grad_op": 2, "no_shard": 0, "auto_wrap": None, "offload": None}
"""Word of ``fsdp`` -> stage of sharding; None = it says something else."""


def parallel(old: Old, command: str) -> Values:
    """How devices share a step."""
    found: Values = {}
    for key, new in DEGREES.items():
        degree = old.get(key) or 1
        if not isinstance(degree, int):
            raise ValueError(f"{key}={degree!r}: expected a number")
        if degree > 1:
            found[new] = degree
    if old.get("sequence_parallel") and "parallel.tensor" in found:
        found["parallel.sequence"] = True
    chunks = old.get("virtual_pipeline_model_parallel_size") or 1
    if "parallel.pipeline" in found and chunks > 1:
        found["parallel.chunks"] = chunks
    return {**found, **sharding(old)}


def sharding(old: Old) -> Values:
    """Stage and offload, over all devices that the degrees leave.

    Args:
        old: The old keys.

    Raises:
        ValueError: The keys have values that are not known, or DeepSpeed's file cannot be read.
    """
    if old.get("deepspeed") and old.get("fsdp"):
        raise ValueError("deepspeed and fsdp exclude each other; leave one out")
    stage, offload = _deepspeed(old["deepspeed"]) if old.get("deepspeed") else _fsdp(old.get("fsdp"))
    if not stage:
        return {}
    more: Values = {"parallel.sharding_stage": stage} if stage > 1 else {}
    return {"parallel.sharding": 0, **more, **({"parallel.offload": True} if offload else {})}


def _deepspeed(given: Any) -> tuple[int, bool]:
    if isinstance(given, str):
        path = Path(given)
        if not path.is_file() and (known := OWN.fullmatch(path.name)):
            return int(known[1]), bool(known[2])
        try:
            given = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"deepspeed={path}: the file cannot be read ({error}); correct the path, or leave it out"
            ) from None
    zero = given.get("zero_optimization", {}) if isinstance(given, Mapping) else None
    stage = zero.get("stage", 0) if isinstance(zero, Mapping) else None
    if not isinstance(zero, Mapping) or stage not in (0, 1, 2, 3):
        raise ValueError("deepspeed: zero_optimization.stage must be 0, 1, 2 or 3")
    offload = zero.get("offload_optimizer") or {}
    return stage, isinstance(offload, Mapping) and offload.get("device", "none") != "none"


def _fsdp(given: Any) -> tuple[int, bool]:
    words = " ".join(given).split() if isinstance(given, list) else str(given or "").split()
    unknown = [word for word in words if word not in FSDP]
    if unknown:
        raise ValueError(f"fsdp={given}: {unknown[0]} is not supported; {', '.join(FSDP)} are")
    stages = [stage for word in words if (stage := FSDP[word]) is not None]
    return (stages[0] if stages else 0), "offload" in words
