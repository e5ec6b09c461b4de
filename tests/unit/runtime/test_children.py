"""Processes that end with their parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

CHILD = "import os, sys, time; from llmctl.runtime.children import end_with_parent; end_with_parent(int(sys.argv[1])); print('ready', flush=True); time.sleep(60)"
HOLDING = CHILD.replace("import os,", "import ctypes, os,").replace("time.sleep(60)", "ctypes.PyDLL(None).sleep(60)")
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


@pytest.mark.parametrize("code", [CHILD, HOLDING], ids=["asleep", "holding the interpreter"])
def test_a_child_ends_when_its_parent_is_killed(code):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, code], stdout=subprocess.PIPE, text=True)
    said = {parent.stdout.readline().strip() for _ in range(2)}
    (child,) = map(int, said - {"ready"})
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert gone(child)


def test_a_child_ends_whose_parent_was_gone_before_it_looked():
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(os.getpid() + 1_000_000)])
    assert child.wait(timeout=20) == 1
