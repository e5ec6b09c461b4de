"""``llmctl plan``: what memory a training configuration will need, by part, and the largest batch that fits."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from llmctl import runtime
from llmctl.adapters import targets
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.commands.config_source import read_config_file
from llmctl.config import common, file, schema
from llmctl.errors import ConfigError
from llmctl.io.sizes import parse_bytes
from llmctl.jobs import memory_plan, precision, registry
from llmctl.runtime import operators

LOOKED_AT = 200
"""Updates whose batches are measured."""


@click.command()
@click.argument("config_file", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--set", "assignments", multiple=True, metavar="a.b=c", help="Override a field; may be repeated.")
@click.option("--memory", help="Memory of the device, e.g. 24GB. [default: free memory of this machine]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(
    ctx: click.Context, config_file: Path, assignments: tuple[str, ...], memory: str | None, as_json: bool
) -> None:
    """Estimate the peak memory of a training run, by part, without training.

    CONFIG is a configuration of finetune, dpo or pretrain. Batches are built as in the run, so lengths, padding and
    packing are those of the data. The estimate is for the CPU; a GPU needs more for its context and kernels.
    """
    limit = parse_bytes(memory, "--memory ") if memory else _free()
    data = file.override(read_config_file(config_file, "finetune", False), list(assignments))
    kind = _kind(data)
    settings = schema.build(registry.part(kind, "config"), data, str(config_file))
    # Nothing is written, so what is in the run's folder is no obstacle.
    with tempfile.TemporaryDirectory() as unused, contextlib.redirect_stdout(sys.stderr):
        output = dataclasses.replace(settings.output, dir=unused, resume=False, overwrite=False)
        job = registry.part(kind, "checks")(dataclasses.replace(settings, output=output), ctx.obj["family"])
        runtime.import_paddle("llmctl plan")
        task = registry.part(kind, "prepare")(job).task
    note = precision.of(settings.model.dtype, settings.train).note
    step, training = _largest(task, job), _training(job)
    parts = memory_plan.plan(job.plugin.card, job.dims, training, step)
    answer = {
        "command": kind,
        "parts": {name: size for name, size in parts.items() if size},
        "peak": memory_plan.total(parts),
        **({"precision": note} if note else {}),
        "tokens_of_a_pass": step.tokens,
        "memory": limit,
        "largest_batch": _fits(job, training, step, limit),
        "kv_cache_of_1000_tokens": memory_plan.cache_bytes(job.plugin.card, job.dims, 1000),
    }
    click.echo(json.dumps(answer, indent=2) if as_json else _table(answer))


def _kind(data: dict[str, Any]) -> str:
    if "dpo" in data:
        return "dpo"
    return "pretrain" if "corpora" in (data.get("data") or {}) else "finetune"


def _largest(task: Any, job: Any) -> memory_plan.Step:
    """The forward pass of the first updates that needs most."""
    steps: dict[memory_plan.Step, None] = {}
    updates = min(task.steps_per_epoch, job.config.train.max_steps or LOOKED_AT, LOOKED_AT)
    for number in range(1, updates + 1):
        for batch in task.micro_batches(number):
            rows, length = batch.arrays["input_ids"].shape
            labels = int((batch.arrays["labels"] != -100).sum()) if "labels" in batch.arrays else rows * length
            steps[memory_plan.Step(rows * length, length, labels)] = None

    def weight(step: memory_plan.Step) -> int:
        parts = memory_plan.plan(job.plugin.card, job.dims, memory_plan.Training(0), step)
        return parts["activations"] + parts["scores"]

    return max(steps, key=weight)


def _training(job: Any) -> memory_plan.Training:
    settings = job.config
    method: Any = getattr(settings, "method", None) or common.MethodConfig()
    name, dpo = method.name, getattr(settings, "dpo", None)
    chosen = tuple(targets.choose(job.plugin.card, job.dims, method.targets)) if name == "lora" else ()
    copied = dpo is not None and name == "full" and not (dpo.reference_free or dpo.precompute_reference)
    return memory_plan.Training(
        trained=_moved(job.plugin.card, job.dims, method, chosen),
        method=name,
        rank=method.rank if name == "lora" else 0,
        targets=chosen,
        base=method.base if name == "lora" else "float",
        average=bool(settings.train.ema_decay),
        reference=copied,
        recompute=settings.train.recompute,
        recompute_interval=settings.train.recompute_interval,
        width=8 if settings.model.dtype == "float64" else 4,
        fused_attention=operators.installed() and not operators.turned_off() and settings.model.dtype != "float64",
    )


def _moved(card: Family, dims: Dims, method: Any, chosen: tuple[str, ...]) -> int:
    """Number of parameters that move."""
    if method.name == "lora":
        linears = targets.linears(card, dims)
        return sum(sum(linears[path].shape) * int(method.rank) for path in chosen)
    if method.name == "prefix":
        wide, tokens = int(dims.kv_heads) * int(dims.head_dim), int(method.virtual_tokens)
        keys = 2 * int(dims.layers) * wide
        between = int(method.projection_hidden) or wide
        return (
            tokens * wide + (wide + 1) * between + (between + 1) * keys if method.prefix_projection else tokens * keys
        )
    return card.count(dims)


def _fits(job: Any, training: memory_plan.Training, step: memory_plan.Step, limit: int) -> int:
    """The largest batch size whose peak is within the limit, rows being as long as the longest now; 0 = not even one."""
    size = max(1, job.config.train.batch_size)

    def peak(rows: int) -> int:
        scaled = dataclasses.replace(step, tokens=step.tokens * rows // size, labels=step.labels * rows // size)
        return memory_plan.total(memory_plan.plan(job.plugin.card, job.dims, training, scaled))

    low, high = 0, 1
    while high < 1 << 20 and peak(high) <= limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if peak(middle) <= limit else (low, middle)
    return low


def _free() -> int:
    """Bytes that a new process may have on this machine.

    Raises:
        ConfigError: The system does not say.
    """
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    raise ConfigError("this system does not say how much memory is free; give it with --memory, e.g. --memory 24GB")


def _table(answer: dict[str, Any]) -> str:
    rows = [f"{name:<18}{_size(size):>12}" for name, size in answer["parts"].items()]
    fits = answer["largest_batch"]
    return "\n".join(
        [
            *rows,
            f"{'peak':<18}{_size(answer['peak']):>12}   of {_size(answer['memory'])}",
            f"largest pass: {answer['tokens_of_a_pass']:,} tokens; largest train.batch_size that fits: {fits or 'none'}",
            *([answer["precision"]] if "precision" in answer else []),
            f"in generation, 1,000 tokens of keys and values: {_size(answer['kv_cache_of_1000_tokens'])}",
        ]
    )


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
