"""``llmctl ops``: checks the compiled operators of the optional distribution ``paddle-llmctl-ops``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from llmctl import runtime
from llmctl.errors import OPERATORS_DISTRIBUTION


@click.group()
def command() -> None:
    """Compiled operators on this machine."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Show which kernel each operator uses and compare it with its reference.

    Exits with 1 if one differs.
    """
    runtime.import_paddle("checking the operators")
    try:
        from llmctl_ops import library
        from llmctl_ops.doctor import examine
        from llmctl_ops.registry import Op
    except ImportError as error:
        what = "is not installed" if error.name == "llmctl_ops" else f"cannot be imported ({error})"
        click.echo(
            f"{OPERATORS_DISTRIBUTION} {what}: paddle's own operators are used. Try: pip install {OPERATORS_DISTRIBUTION}"
        )
        return
    from llmctl.infer.engine.kernel_check import linear_difference, sampling_difference
    from llmctl.infer.engine.selfcheck import step_difference

    more = [("linear", linear_difference), ("sampling", sampling_difference), ("decoder", step_difference)]
    found = examine([Op(name, compare) for name, compare in more], sampling_difference)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found], indent=1))
    else:
        rows = [("operator", "path", "difference", "why"), *(_row(finding) for finding in found)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for row in rows:
            click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))
        click.echo(f"threads: {library.load().threads}")
    if any(finding.problem for finding in found):
        raise SystemExit(1)


def _row(finding: Any) -> tuple[str, str, str, str]:
    error = "-" if finding.error is None else f"{finding.error:.1e}"
    return finding.op, finding.path, error, f"WRONG: {finding.problem}" if finding.problem else finding.why
