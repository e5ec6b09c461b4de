"""The options by which a command runs as several processes, on one or several machines."""

from __future__ import annotations

import click

from llmctl.parallel.machines.clusters import CLUSTERS


def device_options() -> list[click.Parameter]:
    """``--devices``, and those of several machines."""
    return [
        click.Option(
            ["--devices"],
            metavar="N",
            help="Run as N processes of this machine, one for each GPU (or sharing the CPU); 0,2 = on these GPUs.",
        ),
        click.Option(
            ["--nnodes"],
            metavar="N",
            type=click.IntRange(min=1),
            help="Run on N machines that share the output folder; start the command on each of them.",
        ),
        click.Option(
            ["--node-rank"],
            metavar="N",
            type=click.IntRange(min=0),
            help="Number of this machine, from 0; with --nnodes.",
        ),
        click.Option(
            ["--master"], metavar="HOST:PORT", help="Address of machine 0 and a free port there; with --nnodes."
        ),
        click.Option(
            ["--interface"], metavar="NAME", help="Network interface of this machine, such as eth0; with --nnodes."
        ),
        click.Option(
            ["--cluster"],
            type=click.Choice(["auto", "none", *CLUSTERS]),
            default="auto",
            show_default=True,
            help="Whose environment says how many processes or machines there are, where the options above do not.",
        ),
    ]
