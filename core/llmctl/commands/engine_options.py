"""Options of the inference engines, shared by several commands."""

from __future__ import annotations

from typing import Any

import click

ENGINES = ("auto", "dynamic", "static", "fused")


def engine_options(command: Any) -> Any:
    """Options that choose the engine, and the types of weights and KV cache of the fused engine."""
    return _with(
        command,
        click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True,
                     help="fused: continuous batching with packed weights; dynamic: the paddle model; static: an exported program."),
        click.option("--weights", type=click.Choice(["float32", "bfloat16", "int8", "int4"]),
                     help="Data type of the weights (fused). [default: that of the checkpoint]"),
        click.option("--group", type=int, metavar="N", help="Quantization group size of int8 and int4 weights (fused)."),
        click.option("--kv", type=click.Choice(["float32", "int8"]), help="Data type of the KV cache (fused)."),
        click.option("--cache-memory", metavar="SIZE",
                     help="Limit of the KV cache: a size such as 2GB, or a share of the free memory such as 0.5 (fused). "
                     "[default: what is needed, up to 0.5]"),
    )  # fmt: skip


def search_options(command: Any) -> Any:
    """Options of speculative decoding and beam search."""
    return _with(
        command,
        click.option("--speculate", type=click.IntRange(1), metavar="N",
                     help="Speculative decoding by prompt lookup, up to N draft tokens; answers do not change (fused)."),
        click.option("--beams", type=click.IntRange(2), help="Number of beams of beam search (fused)."),
        click.option("--length-penalty", type=float, help="With --beams: above 0 favors longer answers. [default: 1.0]"),
    )  # fmt: skip


def _with(command: Any, *options: Any) -> Any:
    for option in reversed(options):
        command = option(command)
    return command
