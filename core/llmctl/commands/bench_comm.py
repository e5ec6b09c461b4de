"""``llmctl bench comm``: how fast devices exchange tensors, by operation and size, for ``llmctl plan --measured``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmctl import runtime
from llmctl.commands.device_options import device_options
from llmctl.commands.messages import Messages, messages, results
from llmctl.errors import ConfigError, require_installed
from llmctl.io.atomic import atomic_file
from llmctl.io.sizes import parse_bytes
from llmctl.parallel import launch, rank
from llmctl.parallel.costs.hardware import Link, fitted
from llmctl.parallel.costs.step import FACTORS
from llmctl.parallel.machines.start import Options, decide

if TYPE_CHECKING:
    from llmctl.parallel.costs.measure import Sample

SMALLEST, TIMES = 4096, 8
"""Bytes of the smallest tensor, and how much larger the next one is."""


def _run(
    ctx: click.Context, /, devices: str | None, nnodes: int | None, node_rank: int | None, master: str | None,
    interface: str | None, cluster: str, largest: str, rounds: int, output: Path | None,
) -> None:  # fmt: skip
    say = messages(ctx)
    limit = parse_bytes(largest, "--largest ")
    if limit < SMALLEST:
        raise ConfigError(f"--largest {largest}: give at least {SMALLEST} bytes")
    require_installed("paddle", "cpu", "llmctl bench comm")
    start = decide(Options(devices, nnodes, node_rank, master, interface, cluster), os.environ)
    if start.size == 1:
        raise click.UsageError("measuring needs two devices or more; give --devices N, or start it in a cluster")
    if start.launches:
        words = ["bench", "comm", "--largest", str(limit), "--rounds", str(rounds)]
        words += ["--output", str(output)] if output else []
        words += ["--json"] * say.json + ["--quiet"] * say.quiet
        facts = {"--largest": str(limit), "--rounds": str(rounds)}
        ctx.exit(launch.run(words, start.devices, nodes=start.nodes, facts=facts))
    os.environ.update(start.variables)
    _measure([SMALLEST * TIMES**n for n in range(64) if SMALLEST * TIMES**n <= limit], rounds, output, say)


def _measure(sizes: Sequence[int], rounds: int, output: Path | None, say: Messages) -> None:
    """Measures as one of the ranks; rank 0 prints and writes, and does not return."""
    this = rank.from_environment()
    assert this is not None
    with rank.reporting(this):
        runtime.configure()
        runtime.import_paddle("llmctl bench comm")
        from llmctl.parallel.costs.measure import samples
        from llmctl.parallel.mesh import Mesh
        from llmctl.parallel.topology import Topology

        mesh = Mesh(Topology(data=this.size), this)
        found = list(samples(mesh.axis("data"), sizes, rounds))
        if mesh.main:
            links = {op: fitted(points_of(found, op, this.size)) for op in FACTORS if op != "send"}
            _show(found, links, this.size, output, say)
        mesh.close()
    rank.leave(0)


def points_of(found: Sequence[Sample], op: str, ranks: int) -> list[tuple[float, float, float]]:
    """What ``fitted`` takes of an operation."""
    return [((ranks - 1) * FACTORS[op], one.size / ranks, one.seconds) for one in found if one.op == op]


def _show(found: Sequence[Sample], links: dict[str, Link], ranks: int, output: Path | None, say: Messages) -> None:
    between = int(os.environ.get(rank.NODES, "1")) > 1
    whole = fitted([point for op in links for point in points_of(found, op, ranks)])
    content: dict[str, Any] = {
        "between" if between else "inside": vars(whole),
        "ranks": ranks,
        "links": {op: vars(link) for op, link in links.items()},
        "samples": [vars(one) for one in found],
    }
    lines = [f"{ranks} ranks", f"{'operation':<16}{'bytes':>12}{'ms':>10}{'GB/s':>9}"]
    for one in found:
        sent = one.size * FACTORS[one.op] * (ranks - 1) / ranks
        lines.append(f"{one.op:<16}{one.size:>12,}{one.seconds * 1e3:>10.3f}{sent / one.seconds / 1e9:>9.2f}")
    for op, link in {**links, "all": whole}.items():
        lines.append(f"{op}: {link.latency * 1e6:.1f} us a step, {link.bandwidth / 1e9:.2f} GB/s")
    say.result("\n".join(lines), **content)
    if output:
        with atomic_file(output) as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


command = results(
    click.Command(
        "bench comm",
        callback=click.pass_context(_run),
        params=[
            *device_options(),
            click.Option(["--largest"], metavar="SIZE", default="64MiB", show_default=True, help="Largest tensor."),
            click.Option(
                ["--rounds"], type=click.IntRange(1), default=5, show_default=True, help="Measured calls of each size."
            ),
            click.Option(
                ["--output"],
                metavar="FILE",
                type=click.Path(path_type=Path),
                help="File for llmctl plan --measured, with all values.",
            ),
        ],
        help="Measure how fast devices exchange tensors, by operation and size: latency and bandwidth.",
    )
)
