"""Damaged files: each seed gives another one, the same on every machine.

``LLMCTL_ROBUST=N`` makes tests marked ``robust`` try N times as many inputs, ``LLMCTL_ROBUST=full`` thousands of each kind.
``LLMCTL_ROBUST_FIGURES=FILE`` appends what each tried, which ``tools/reliability.py`` makes a table of.
"""

import copy
import json
import os
import random
import traceback
import warnings
from pathlib import Path

from llmctl.errors import LlmctlError

TIMES = os.environ.get("LLMCTL_ROBUST", "1")
FULL = TIMES == "full"
FIGURES = os.environ.get("LLMCTL_ROBUST_FIGURES")
VALUES = (
    None, True, False, -1, 0, 1, 2, 3, 7, 1.5, -0.0, float("nan"), float("inf"), 1e308, 2**31, 2**40, 2**63, -(2**63), 10**400,
    "", "x", "0", "..", "/etc/passwd", "\0", "\ud800", "é" * 300, [], [[]], [1], ["a"], {}, {"": 0}, {"a": {"b": [None]}},
)  # fmt: skip


def budget(few, many):
    """How many inputs a test tries."""
    return many if FULL else few * int(TIMES)


def record(kind, **outcomes):
    """Notes what a test tried: ``inputs`` or ``points``, and how they ended."""
    if FIGURES:
        with open(FIGURES, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"kind": kind, **outcomes}) + "\n")


def json_value(value, seed):
    """A JSON value with one to three places changed: another value, a key or item less or more, two exchanged."""
    draw, changed = random.Random(seed), copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(changed))
        if not places:
            return draw.choice(VALUES)
        parent, key = draw.choice(places)
        how = draw.random()
        if how < 0.6:
            parent[key] = _other(parent[key], draw)
        elif how < 0.8:
            del parent[key]
        elif isinstance(parent, list):
            parent.insert(key, draw.choice(parent))
        else:
            parent[draw.choice(("", "extra", key + "x"))] = (
                parent.pop(key) if draw.random() < 0.5 else draw.choice(VALUES)
            )
    return changed


def content(data, seed):
    """Bytes cut short, with bits flipped, bytes put in, a part twice, or nothing at all."""
    draw, changed = random.Random(seed), bytearray(data)
    how = draw.randrange(6)
    at = draw.randrange(len(changed) + 1)
    if how == 0:
        return bytes(changed[:at])
    if how == 1:
        changed[at:at] = draw.choice((b"\0", b"\xff\xfe", b"{", b"}", b'"', b"[" * 5000, b"9" * 5000, b"\n\n", b"NaN"))
    elif how == 2:
        changed[at : at + draw.randrange(1, 64)] = b""
    elif how == 3:
        changed[at:at] = changed[at : at + draw.randrange(1, 256)]
    elif how == 4 and draw.random() < 0.1:
        return b""
    else:
        for _ in range(draw.choice((1, 1, 2, 8))):
            if changed:
                changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def json_text(value):
    """A value as JSON text; half of a surrogate pair stays, as other writers leave it."""
    return json.dumps(value).encode()


def try_all(kind, inputs, read):
    """Reads every input, and expects a value or a message.

    Args:
        kind: What is read, for the figures.
        inputs: (name, function that puts the input in its place).
        read: Reads it; an ``LlmctlError`` is right, any other exception is not.
    """
    accepted = refused = 0
    wrong = {}
    for name, place in inputs:
        place()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read()
            accepted += 1
        except LlmctlError as error:
            assert str(error).strip(), name
            refused += 1
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"
            wrong.setdefault(where, []).append(f"{name}: {str(error)[:200]}")
    failures = sum(map(len, wrong.values()))
    record(kind, inputs=accepted + refused + failures, refused=refused, failures=failures)
    assert not wrong, "".join(f"\n{kind}: {len(found)} x {where}, {found[0]}" for where, found in wrong.items())
    return accepted, refused


def _places(value):
    if isinstance(value, dict):
        for key, item in value.items():
            yield value, key
            yield from _places(item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield value, index
            yield from _places(item)


def _other(value, draw):
    if isinstance(value, int) and not isinstance(value, bool) and draw.random() < 0.4:
        return draw.choice((value + 1, value - 1, -value, value * 2, value * 1000, value // 2, value % 997 + 0.5))
    if isinstance(value, str) and draw.random() < 0.3:
        return draw.choice((value[:-1], value + "x", value.upper(), value * 3, value[::-1]))
    return copy.deepcopy(draw.choice(VALUES))


def in_fork(job, seconds=600, memory=8 << 30):
    """Runs a job in a fork, so that a signal is a failure of the test and not its end, within limits of time and memory."""
    import resource
    import signal

    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(seconds)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + memory,) * 2)
            job()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, f"ended with {code}"
