"""Damages, kills and fails what llmctl reads and writes, in full, and writes the table of docs/reliability.md.

    python tools/reliability.py [--times N] [--figures FILE]

The tests marked ``robust`` run with N times as many inputs and faults as in ``make test``, or with thousands of each kind (``full``),
which takes hours. With ``--figures`` the tables are made of a file that an earlier run wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"


def main() -> int:
    """Runs the tests, unless there are figures, and writes the page; returns the exit code of the tests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", default="full")
    parser.add_argument("--figures", type=Path)
    given = parser.parse_args()
    code = 0
    with tempfile.TemporaryDirectory() as folder:
        figures = given.figures or Path(folder) / "figures.jsonl"
        if not given.figures:
            settings = {"LLMCTL_ROBUST": given.times, "LLMCTL_ROBUST_FIGURES": str(figures)}
            command = [sys.executable, "-m", "pytest", "-q", "-m", "robust"]
            code = subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, check=False).returncode
        rows = [json.loads(line) for line in figures.read_text(encoding="utf-8").splitlines()]
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    PAGE.write_text(f"{head}{BEGIN}\n{table(rows)}\n{END}{tail}", encoding="utf-8")
    return code


def table(rows: list[dict]) -> str:
    """Two tables: damaged inputs, and faults of commands."""
    inputs = [row for row in rows if "inputs" in row]
    faults = [row for row in rows if "points" in row]
    lines = ["| input | damaged copies | refused with a message | failures |", "|---|---:|---:|---:|"]
    for row in sorted(inputs, key=lambda row: row["kind"]):
        lines.append(f"| {row['kind']} | {row['inputs']:,} | {row['refused']:,} | {row['failures']} |")
    total = [sum(row[key] for row in inputs) for key in ("inputs", "refused", "failures")]
    lines += [f"| **all** | {total[0]:,} | {total[1]:,} | {total[2]} |", ""]
    lines += ["| command | file operations | faults | killed | ended with a message | ended well | failures |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    keys = ("operations", "points", "killed", "refused", "done", "failures")
    for row in sorted(faults, key=lambda row: row["kind"]):
        lines.append(f"| {row['kind']} | " + " | ".join(f"{row[key]:,}" for key in keys) + " |")
    sums = " | ".join(f"{sum(row[key] for row in faults):,}" for key in keys)
    return "\n".join([*lines, f"| **all** | {sums} |"])


if __name__ == "__main__":
    sys.exit(main())
