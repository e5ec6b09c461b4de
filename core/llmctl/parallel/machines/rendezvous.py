"""The rendezvous of machines that will train together: their launchers meet at machine 0 and compare what they will run. No paddle here.

So do ranks that another program started: Paddle would wait for 15 minutes, and hear of no signal meanwhile.

Machine 0 listens at the port where its rank 0 will. It speaks first, so that a machine that comes while something else listens
there, such as a run that is ending, sends nothing to it. The others come with their facts and wait for the verdict.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from llmctl.errors import ConfigError
from llmctl.io.json_object import parse_json
from llmctl.parallel.machines.nodes import Nodes, bound, check_ipv4, parse_master
from llmctl.parallel.rank import Rank

WAIT, POLL, TURN = 300.0, 0.2, 5.0
"""Seconds that machines wait for each other, between two looks at signals, and for an answer of one that is there."""

NOTICE = 3.0
"""Seconds of waiting after which the terminal says for whom."""

GREETING = b"llmctl meeting\n"
LARGEST = 1 << 20
"""Most bytes of a message."""


class Stopped(Exception):
    """A signal ended the waiting."""


def meet(
    nodes: Nodes, facts: Mapping[str, Any], stopped: Callable[[], bool], wait: float = WAIT, kind: str = "machine"
) -> None:
    """Returns when all machines are there and have the same facts.

    Args:
        nodes: The machines, more than one.
        facts: What must be the same on all, text by name.
        stopped: Whether a signal came.
        wait: Seconds.
        kind: What meets, for messages.

    Raises:
        ConfigError: A machine did not come or cannot be reached, the address is IPv6's, the port is in use, or facts differ.
        Stopped: A signal came.
    """
    check_ipv4(nodes.host, f"--master {nodes.place}")
    deadline = time.monotonic() + wait
    if nodes.number == 0:
        _receive_all(nodes, facts, stopped, deadline, wait, kind)
    else:
        _come(nodes, facts, stopped, deadline, wait, kind)


def meet_ranks(rank: Rank, master: str, facts: Mapping[str, Any]) -> None:
    """As ``meet``, of ranks that another program than our launcher started.

    Args:
        rank: This one.
        master: HOST:PORT of rank 0.
        facts: As for ``meet``.

    Raises:
        ConfigError: As for ``meet``.
    """
    host, port = parse_master(master, "PADDLE_MASTER must have", "rank 0")
    meet(Nodes(rank.size, rank.number, host, port), facts, lambda: False, kind="rank")


class _Notice:
    """Prints what is waited for, once and not at once."""

    def __init__(self) -> None:
        self._at = time.monotonic() + NOTICE

    def __call__(self, text: str) -> None:
        if time.monotonic() > self._at:
            print(text, file=sys.stderr, flush=True)
            self._at = float("inf")


def _receive_all(
    nodes: Nodes, facts: Mapping[str, Any], stopped: Callable[[], bool], deadline: float, wait: float, kind: str
) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(bound(nodes.host, nodes.port))
        listener.listen(nodes.count)
        listener.settimeout(POLL)
        tell = _Notice()
        came: dict[int, socket.socket] = {}
        guests: list[socket.socket] = []
        problem = ""
        while len(came) < nodes.count - 1 and not problem:
            missing = sorted(set(range(1, nodes.count)) - set(came))
            names = f"{kind}{'' if len(missing) == 1 else 's'} {', '.join(map(str, missing))} of {nodes.count}"
            if stopped():
                raise Stopped
            tell(f"waiting up to {wait:.0f} s for {names} to come to --master {nodes.place}")
            if time.monotonic() > deadline:
                problem = (
                    f"{names} did not come to --master {nodes.place} within {wait:.0f} s; start llmctl "
                    "there too, or check address, port and firewall"
                )
                break
            try:
                guest, _ = listener.accept()
            except TimeoutError:
                continue
            stack.callback(guest.close)
            guests.append(guest)
            problem = _welcome(guest, came, nodes, facts, kind)
        # Those who go on connect to this port again: not to this listener.
        listener.close()
        verdict = json.dumps({"problem": problem}).encode() + b"\n"
        for guest in guests:
            with contextlib.suppress(OSError):
                guest.settimeout(TURN)
                guest.sendall(verdict)
        for guest in guests:
            # The other side closes first: a port whose connections this side closed could not be taken by rank 0 at once.
            with contextlib.suppress(OSError):
                guest.recv(1)
        if problem:
            raise ConfigError(problem)


def _welcome(
    guest: socket.socket, came: dict[int, socket.socket], nodes: Nodes, facts: Mapping[str, Any], kind: str
) -> str:
    """Takes a machine's facts; returns what is wrong with them, empty if nothing is."""
    guest.settimeout(TURN)
    try:
        guest.sendall(GREETING)
        told = parse_json(_line(guest))
        number, theirs = int(told["number"]), dict(told["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # Not one of us, or gone again.
    before = came.get(number)
    came[number] = guest
    if not 0 < number < nodes.count or (before and not _gone(before)):
        if kind == "rank":
            return f"two ranks have number {number}, or one that is not below the {nodes.count} of all"
        return f"two machines have --node-rank {number}, or a number that is not below --nnodes {nodes.count}"
    return differences(facts, theirs, f"on {kind} 0", f"on {kind} {number}")


def differences(first: Mapping[str, Any], other: Mapping[str, Any], at_first: str, at_other: str) -> str:
    """What differs between the facts of two that train together; empty if nothing does.

    Args:
        first: Facts by name.
        other: Those of the other.
        at_first: Where the first are, such as ``on machine 0``.
        at_other: Where the others are.
    """
    apart = [key for key in sorted({**first, **other}) if first.get(key) != other.get(key)]
    if not apart:
        return ""
    lines = "\n  ".join(f"{key}: {first.get(key)} {at_first}, {other.get(key)} {at_other}" for key in apart)
    return f"the machines do not train the same; start all with one version and one configuration:\n  {lines}"


def _come(
    nodes: Nodes, facts: Mapping[str, Any], stopped: Callable[[], bool], deadline: float, wait: float, kind: str
) -> None:
    message = json.dumps({"number": nodes.number, "facts": dict(facts)}).encode() + b"\n"
    reason, tried, tell = "no answer", False, _Notice()
    while True:
        if stopped():
            raise Stopped
        tell(f"waiting up to {wait:.0f} s for {kind} 0 at --master {nodes.place} ({reason})")
        if tried and time.monotonic() > deadline:
            first = "with --node-rank 0" if kind == "machine" else "as rank 0"
            raise ConfigError(
                f"--master {nodes.place} does not answer after {wait:.0f} s ({reason}); start llmctl {first} there, or check "
                "address, port and firewall"
            )
        try:
            with socket.create_connection((nodes.host, nodes.port), timeout=TURN) as host:
                host.settimeout(TURN)
                if _line(host) + b"\n" == GREETING:
                    host.sendall(message)
                    problem = parse_json(_wait_for_line(host, stopped, deadline))["problem"]
                    if problem:
                        raise ConfigError(problem)
                    return
                reason = "something else listens there"
        except (OSError, ValueError) as error:
            reason = str(getattr(error, "strerror", None) or error or type(error).__name__)
        tried = True
        time.sleep(POLL)


def _wait_for_line(host: socket.socket, stopped: Callable[[], bool], deadline: float) -> bytes:
    host.settimeout(POLL)
    read = b""
    # Machine 0 gives up at its own deadline, which may be later than this one's.
    while not read.endswith(b"\n"):
        if stopped():
            raise Stopped
        if time.monotonic() > deadline + TURN:
            raise TimeoutError("the other machines did not come")
        with contextlib.suppress(TimeoutError):
            part = host.recv(1 << 16)
            if not part:
                raise ConnectionError("it has gone")
            read += part
    return read


def _line(one: socket.socket) -> bytes:
    """The next line, without its end."""
    read = b""
    while not read.endswith(b"\n"):
        part = one.recv(1 << 16)
        if not part or len(read) > LARGEST:
            raise ConnectionError("the connection ended")
        read += part
    return read[:-1]


def _gone(one: socket.socket) -> bool:
    """Whether the other side of a connection has closed it."""
    one.settimeout(0)
    try:
        return one.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
