"""Options on engines that several commands have."""

from __future__ import annotations

from typing import Any

import click

ENGINES = ("auto", "dynamic", "static", "fused")


def engine_options(command: Any) -> Any:
    """Options that choose the engine, and how the fused one holds weights and cache."""
    return _with(
        command,
        click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True,
                     help="What computes: the fused engine, the layer, or the program in MODEL."),
        click.option("--weights", type=click.Choice(["float32", "bfloat16", "int8", "int4"]),
                     help="How weights are held (fused). [default: as exactly as the checkpoint has them]"),
        click.option("--group", type=int, metavar="N", help="With int8 and int4 weights: inputs that share a scale (fused)."),
        click.option("--kv", type=click.Choice(["float32", "int8"]), help="How keys and values are held (fused)."),
        click.option("--cache-memory", metavar="SIZE",
                     help="Limit of the cache of keys and values: 2GB, or 0.5 of the free memory (fused). "
                     "[default: what is needed, up to 0.5]"),
    )  # fmt: skip


def search_options(command: Any) -> Any:
    """Options on how the fused engine finds its answers."""
    return _with(
        command,
        click.option("--speculate", type=click.IntRange(1), metavar="N",
                     help="Guess up to N tokens ahead from the text so far; answers stay the same (fused)."),
        click.option("--beams", type=click.IntRange(2), help="Beam search with so many beams (fused)."),
        click.option("--length-penalty", type=float, help="With --beams: above 0 favours longer answers. [default: 1.0]"),
    )  # fmt: skip


def _with(command: Any, *options: Any) -> Any:
    for option in reversed(options):
        command = option(command)
    return command
