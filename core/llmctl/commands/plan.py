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
from llmctl.commands.completion import complete_setting
from llmctl.config import file, schema
from llmctl.errors import ConfigError
from llmctl.io.sizes import parse_bytes
from llmctl.jobs import registry
from llmctl.migrate.config_file import read_config_file
from llmctl.runtime.memory import host_memory


@click.command()
@click.argument("config_file", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--set", "assignments", multiple=True, metavar="a.b=c", shell_complete=complete_setting,
              help="Override a field; may be repeated.")  # fmt: skip
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
    from llmctl.jobs import memory_plan

    limit = parse_bytes(memory, "--memory ") if memory else _free()
    data = file.override(read_config_file(config_file, "finetune", False), list(assignments))
    command = registry.COMMANDS[registry.command_of(data)]
    config = schema.build(registry.resolve(command.config), data, str(config_file))
    # Nothing is written, so what is in the run's folder is no obstacle.
    with tempfile.TemporaryDirectory() as unused, contextlib.redirect_stdout(sys.stderr):
        output = dataclasses.replace(config.output, dir=unused, resume=False, overwrite=False)
        job = registry.resolve(command.check)(dataclasses.replace(config, output=output), ctx.obj.family)
        runtime.import_paddle("llmctl plan")
        task = registry.resolve(command.method).prepare(job).task
    answer = memory_plan.plan_memory(job, task, limit)
    click.echo(json.dumps(answer, indent=2) if as_json else _table(answer))


def _free() -> int:
    free = host_memory()
    if free is None:
        raise ConfigError("this system does not say how much memory is free; give it with --memory, e.g. --memory 24GB")
    return free


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
