"""Standard streams that are closed, full or of a narrow encoding end no command in a traceback."""

import os
import subprocess
import sys

import pytest

CODE = "import sys; from llmctl.runtime import streams; streams.prepare(); {0}; sys.exit(streams.flush(0))"


def run(code, before="", **options):
    command = f"{before} exec {sys.executable} -c '{CODE.format(code)}'"
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_as_if_there_was_no_input_and_nobody_read(closed):
    done = run("print(sys.stdin.read(), sys.stdout.isatty()); print(1, file=sys.stderr)", f"exec {closed};")
    assert done.returncode == 0 and "Traceback" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no full device")
def test_a_full_disk_is_told_in_one_line():
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = run("print(1)", "exec > /dev/full;", env=buffered)
    assert done.returncode == 1 and done.stderr == "error: standard output cannot be written: No space left on device\n"


def test_characters_that_an_encoding_lacks_are_escaped():
    done = run('print("a\\u4f60")', env={**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"})
    assert done.stdout == "a\\u4f60\n"


def test_the_command_line_ends_orderly_on_a_full_disk(run_llmctl):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "llmctl", "models"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (
        done.returncode == 1 and "standard output cannot be written" in done.stderr and "Traceback" not in done.stderr
    )
