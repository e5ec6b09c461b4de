"""Whole commands that are killed, fail at a file operation or meet a limit on the size of files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kit.damage import FULL, record

pytestmark = pytest.mark.robust

TESTS = Path(__file__).resolve().parents[1]
QUICK = ("convert", "export-int4", "merge", "data-build", "data-index", "generate", "finetune")


def test_commands_leave_the_old_or_the_new_and_can_be_repeated():
    jobs = [] if FULL else [*QUICK, "--points", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "kit.command_sweep", *jobs], capture_output=True, text=True, check=False, cwd=TESTS
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert not [f"{row['job']}: {failure}" for row in found for failure in row["failures"]], done.stderr
    assert done.returncode == 0 and (FULL or len(found) == len(QUICK)), done.stderr
    for row in found:
        record(f"llmctl {row.pop('job')}, faults", **{**row, "failures": len(row["failures"])})
