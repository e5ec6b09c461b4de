"""``llmctl plan``: what memory a training configuration will need, by part, and the largest batch that fits."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmctl import runtime
from llmctl.commands.completion import complete_setting
from llmctl.commands.configured import MODEL, model_settings
from llmctl.commands.messages import verbosity
from llmctl.commands.model_option import model_option
from llmctl.config import file, schema
from llmctl.errors import ConfigError
from llmctl.io.progress import waiting
from llmctl.io.sizes import parse_bytes
from llmctl.jobs import registry
from llmctl.migrate.config_file import read_config_file
from llmctl.parallel.costs.hardware import DEFAULT, HARDWARE, calibrated, find
from llmctl.parallel.costs.step import EFFICIENCY
from llmctl.plugins import Families
from llmctl.runtime.memory import host_memory

if TYPE_CHECKING:
    from llmctl.jobs.memory_estimate import MicroBatch
    from llmctl.jobs.memory_plan import Outline
    from llmctl.jobs.proposals import Planner


@click.command()
@click.argument("config_file", metavar="[CONFIG]", required=False, type=click.Path(path_type=Path))
@model_option(MODEL)
@click.option("--set", "assignments", multiple=True, metavar="a.b=c", shell_complete=complete_setting,
              help="Override a field; may be repeated.")  # fmt: skip
@click.option(
    "--memory", metavar="SIZE", help="Memory of the device, e.g. 24GB. [default: free memory of this machine]"
)
@click.option(
    "--devices",
    metavar="N",
    type=click.IntRange(min=1),
    help="Devices that train; the plan is for the one that needs most. [default: as few as `parallel` needs]",
)
@click.option(
    "--propose",
    is_flag=True,
    help="Propose degrees of `parallel` for that many GPUs: the fastest that fit, with memory and seconds a step.",
)
@click.option(
    "--hardware",
    type=click.Choice(list(HARDWARE)),
    default=DEFAULT,
    show_default=True,
    help="GPUs of --propose, eight in a machine.",
)
@click.option(
    "--measured",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Speed of connections as llmctl bench comm measured it, for --propose.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@verbosity
@click.pass_context
def command(
    ctx: click.Context, config_file: Path | None, assignments: tuple[str, ...], memory: str | None, devices: int | None,
    propose: bool, hardware: str, measured: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Estimate the peak memory of a training run, by part, and say whether it fits.

    CONFIG is a configuration of finetune, dpo or pretrain; without it, finetune's defaults for --model. Batches are built as in the
    run, so lengths, padding and packing are those of the data; without data or tokenizer, rows are as long as they may be.
    The weights are not needed, config.json is. The estimate is for the CPU; a GPU needs more for its context and kernels.

    With --devices N --propose it is for N GPUs: all degrees of `parallel` that the model allows are compared, a step keeping its
    rows. Seconds are those of a model of costs, from data sheets and an assumed efficiency, not measured.

    Exits with 1 if it does not fit.
    """
    from llmctl.jobs import memory_plan

    given = [*assignments, *model_settings(ctx.obj, assignments)]
    if config_file is None and not given:
        raise click.UsageError("give CONFIG, or with --model a folder or a name on a hub: a family alone has no size")
    read = read_config_file(config_file, "finetune", False) if config_file else {}
    data = file.override(read, given)
    name, families = registry.command_of(data), Families()
    config = schema.build(
        registry.resolve(registry.COMMANDS[name].config), data, str(config_file or "the command line")
    )
    if propose:
        ctx.exit(_propose(name, config, ctx.obj.family, families, devices, memory, hardware, measured, as_json))
    limit = _memory(memory) if memory else _free()
    if not memory:
        # The memory is that of this machine, where the optimizer's states are in any case.
        config = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, offload=False))
    job, batch, available = _largest_micro_batch(name, config, ctx.obj.family, families)
    job = dataclasses.replace(job, devices=devices or 0)
    answer = memory_plan.plan_memory(job, batch, available, limit)
    click.echo(json.dumps(answer, indent=2) if as_json else _table(answer))
    ctx.exit(0 if answer["fits"] else 1)


def _propose(
    name: str, config: Any, family: str, families: Families, devices: int | None, memory: str | None, hardware: str,
    measured: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Prints proposals; returns the exit code."""
    from llmctl.jobs.outline import outline
    from llmctl.jobs.proposals import Planner, settings_of

    if devices is None:
        raise click.UsageError("--propose needs --devices N, the number of GPUs")
    device = find(hardware)
    if measured:
        device = calibrated(device, measured)
    if memory:
        device = dataclasses.replace(device, memory=_memory(memory))
    # What the configuration says of parallelism is what is looked for.
    free = dataclasses.replace(config, parallel=type(config.parallel)())
    planner = Planner(outline(name, free, family, families), device)
    found = planner.best(devices)
    answers: list[dict[str, Any]] = [
        {
            "set": settings_of(one, planner.global_batch),
            "fits": one.fits,
            "parts": dict(one.parts),
            "peak": one.peak,
            "memory": one.limit,
            "host_memory": one.host,
            "seconds": {**dataclasses.asdict(one.seconds), "total": one.seconds.total},
            "tokens_per_second_and_device": round(
                planner.global_batch * planner.length / one.seconds.total / devices, 1
            ),
        }
        for one in found
    ]
    if as_json:
        click.echo(json.dumps({"devices": devices, "hardware": hardware, "proposals": answers}, indent=2))
    else:
        click.echo(_proposals(answers, devices, hardware, planner))
    return 0 if found[0].fits else 1


def _proposals(answers: Sequence[dict[str, Any]], devices: int, hardware: str, planner: Planner) -> str:
    first = answers[0]
    verdict = "fits" if first["fits"] else "does not fit; this needs least"
    seconds, host = first["seconds"], first["host_memory"]
    times = ", ".join(f"{name} {seconds[name]:.2f}" for name in ("compute", "communication", "bubble", "update"))
    rows = [f"{name:<18}{_size(size):>12}" for name, size in first["parts"].items()]
    others = [
        f"  {one['seconds']['total']:8.2f} s  {_size(one['peak']):>10}  {' '.join(one['set'])}"
        for one in answers[1:]
        if one["fits"] == first["fits"]
    ]
    return "\n".join(
        [
            f"{devices} x {hardware}, a step of {planner.global_batch} rows of {planner.length} tokens",
            *(f"  --set {setting}" for setting in first["set"]),
            *rows,
            f"{'peak':<18}{_size(first['peak']):>12}   of {_size(first['memory'])} of each device: {verdict}",
            *([f"{'main memory':<18}{_size(host):>12}   for each device"] if host else []),
            f"{'a step':<18}{seconds['total']:>10.2f} s   {times}",
            f"{first['tokens_per_second_and_device']:,.0f} tokens per second and device, by data sheets and an assumed efficiency of "
            f"{EFFICIENCY:.0%}: estimated, not measured",
            *(["next:", *others] if others else []),
        ]
    )


def _largest_micro_batch(name: str, config: Any, family: str, families: Families) -> tuple[Outline, MicroBatch, int]:
    """The job, its largest micro-batch, and the rows of its data, 0 if they are not known."""
    from llmctl.jobs import memory_plan
    from llmctl.jobs.outline import is_complete, outline

    if not is_complete(config, family, families):
        job = outline(name, config, family, families)
        return job, memory_plan.full_micro_batch(job), 0
    command = registry.COMMANDS[name]
    # Nothing is written, so what is in the run's folder is no obstacle.
    with tempfile.TemporaryDirectory() as unused, contextlib.redirect_stdout(sys.stderr):
        output = dataclasses.replace(config.output, dir=unused, resume=False, overwrite=False)
        checked = registry.resolve(command.check)(dataclasses.replace(config, output=output), family, families, False)
        with waiting("importing paddle"):
            runtime.import_paddle("llmctl plan")
            method = registry.resolve(command.method)
        task = method.prepare(checked).task
        job = memory_plan.Outline(name, checked.config, checked.model)
        return job, memory_plan.measured_micro_batch(job, task), len(task.train)


def _memory(text: str) -> int:
    """The bytes of ``--memory``."""
    size = parse_bytes(text, "--memory ")
    if size < 1 << 20:
        raise ConfigError(f"--memory {text} is {size} bytes, in which nothing can be trained; write a unit, e.g. 24GB")
    return size


def _free() -> int:
    free = host_memory()
    if free is None:
        raise ConfigError("this system does not say how much memory is free; give it with --memory, e.g. --memory 24GB")
    return free


def _table(answer: dict[str, Any]) -> str:
    rows = [f"{name:<18}{_size(size):>12}" for name, size in answer["parts"].items()]
    largest, available = answer["largest_batch"], answer["rows_of_the_data"]
    all_rows = ", all rows of the data" if largest and largest == available else ""
    verdict = "fits" if answer["fits"] else "does not fit"
    changes = [f"  {' '.join(f'--set {one}' for one in way['set'])}: {_size(way['peak'])}" for way in answer["changes"]]
    return "\n".join(
        [
            *([f"each of {answer['devices']} devices, the one that needs most"] if answer["devices"] > 1 else []),
            *rows,
            f"{'peak':<18}{_size(answer['peak']):>12}   of {_size(answer['memory'])}: {verdict}",
            *(
                [f"{'main memory':<18}{_size(answer['host_memory']):>12}   for each device"]
                if "host_memory" in answer
                else []
            ),
            f"largest micro-batch: {answer['tokens_per_micro_batch']:,} tokens; largest train.batch_size that fits: {largest or 'none'}{all_rows}",
            *([answer["precision"]] if "precision" in answer else []),
            *([answer["base"]] if "base" in answer else []),
            f"in generation, 1,000 tokens of keys and values: {_size(answer['kv_cache_of_1000_tokens'])}",
            *(["it fits with one of" if len(changes) > 1 else "it fits with", *changes] if changes else []),
            *(
                ["take a smaller model, shorter data.max_length, or more memory"]
                if not answer["fits"] and not changes
                else []
            ),
        ]
    )


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
