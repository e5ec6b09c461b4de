"""Processes that end with their parent."""

import os
import signal
import subprocess
import sys
import time

CHILD = "import os, sys, time; from llmctl.runtime.children import end_with_parent; end_with_parent(int(sys.argv[1])); time.sleep(60)"
PARENT = (
    "import os, subprocess, sys; child = subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())]); "
    "print(child.pid, flush=True); child.wait()"
)


def gone(pid):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


def test_a_child_ends_when_its_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert gone(child)


def test_a_child_ends_whose_parent_was_gone_before_it_looked():
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(os.getpid() + 1_000_000)])
    assert child.wait(timeout=20) == 1
