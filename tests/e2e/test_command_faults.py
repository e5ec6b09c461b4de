"""Whole commands that are killed, fail at a file operation or meet a limit on the size of files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kit.damage import FULL, TIMES, record

pytestmark = pytest.mark.robust

TESTS = Path(__file__).resolve().parents[1]
QUICK = ("convert", "export-int4", "merge", "data-build", "data-index", "generate", "finetune")


# Training has hundreds of file operations.
DRAWN = ("finetune", "finetune-async", "finetune-lora", "pretrain", "--points", "40")
FULLY = (
    "convert",
    "export-static",
    "export-fused",
    "export-int4",
    "merge",
    "data-build",
    "data-merge",
    "data-index",
    "generate",
    "report",
)


def test_commands_leave_the_old_or_the_new_and_can_be_repeated():
    found = [row for jobs in (FULLY, DRAWN) for row in swept(jobs)] if FULL else swept([*QUICK, "--points", TIMES])
    for row in found:
        record(f"llmctl {row['job']}", **{**row, "failures": len(row["failures"])})
    assert not [f"{row['job']}: {failure}" for row in found for failure in row["failures"]]
    assert len(found) >= len(QUICK)


def swept(jobs):
    """What the sweep of some jobs found."""
    command = [sys.executable, "-m", "kit.command_sweep", *jobs]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TESTS)
    assert done.stdout, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
