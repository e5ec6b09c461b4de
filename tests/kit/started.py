"""Commands that run as processes of their own: their output while they run, their children, their end."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

LLMCTL = [sys.executable, "-m", "llmctl"]


def start(words, **variables):
    """A process in a group of its own, with its output on one pipe."""
    environment = {**os.environ, "LLMCTL_THREADS": "1", "PYTHONUNBUFFERED": "1", **variables}
    return subprocess.Popen(
        list(map(str, words)),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(*started, seconds=240):
    """Exit codes and outputs of processes, when all have ended."""
    outputs = [""] * len(started)

    def read(number):
        outputs[number] += started[number].communicate(timeout=seconds)[0]

    threads = [threading.Thread(target=read, args=(number,)) for number in range(len(started))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [one.returncode for one in started], outputs


def lines_until(process, what):
    """The lines of a process up to one that has the text."""
    read = []
    for line in process.stdout:
        read.append(line)
        if what in line:
            return read
    raise AssertionError("".join(read))


def children(process):
    """Processes that a process started."""
    tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(task) for task in tasks]


def losses(run):
    """Step -> loss in the log of a run."""
    rows = map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}
