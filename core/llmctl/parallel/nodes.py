"""The machines that train together: which one this is, and where all of them meet. Nothing here imports paddle."""

from __future__ import annotations

import errno
import socket
import time
from dataclasses import dataclass

from llmctl.errors import ConfigError

WAIT, POLL = 300.0, 0.5
"""Seconds that a machine waits for rank 0 to be reachable, and between two tries."""


@dataclass(frozen=True)
class Nodes:
    """The machines that train together, with as many processes each.

    Attributes:
        count: How many.
        number: Which one this is, from 0.
        host: Address of machine 0; empty = this machine alone.
        port: Port of rank 0 there; 0 = any free one.
        interface: Network interface of this machine; empty = the one of its host name.
    """

    count: int = 1
    number: int = 0
    host: str = ""
    port: int = 0
    interface: str = ""


def make_nodes(count: int, number: int | None, master: str | None, interface: str | None) -> Nodes:
    """The machines, from the options of the command line.

    Args:
        count: ``--nnodes``.
        number: ``--node-rank``.
        master: ``--master``, HOST:PORT.
        interface: ``--interface``.

    Raises:
        ConfigError: An option is missing, has no effect, or is out of range.
    """
    if count == 1:
        given = [
            name for name, value in (("--node-rank", number), ("--master", master), ("--interface", interface)) if value
        ]
        if given:
            raise ConfigError(f"{given[0]} has no effect on one machine; add --nnodes N, the number of machines")
        return Nodes()
    if number is None or not 0 <= number < count:
        raise ConfigError(
            f"--nnodes {count} needs --node-rank, the number of this machine from 0 to {count - 1}"
            f"{'' if number is None else f', not {number}'}"
        )
    host, _, port = (master or "").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"--nnodes {count} needs --master HOST:PORT, the address of machine 0 and a free port there"
            f"{f', not {master}' if master else ''}"
        )
    return Nodes(count, number, host, int(port), interface or "")


def own_address(nodes: Nodes) -> str:
    """The address by which other machines reach this one; ``127.0.0.1`` where there are none.

    Raises:
        ConfigError: The address of machine 0 is not known.
    """
    if nodes.count == 1:
        return "127.0.0.1"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            # Nothing is sent: the system chooses the address that it would send from.
            one.connect((nodes.host, nodes.port))
            return str(one.getsockname()[0])
    except OSError as error:
        raise ConfigError(
            f"--master {nodes.host}:{nodes.port}: {error.strerror or error}; give another address"
        ) from None


def check_master(nodes: Nodes, wait: float = WAIT) -> None:
    """On machine 0, that the port is free; on others, that rank 0 answers there, for which they wait.

    Args:
        nodes: The machines.
        wait: Seconds.

    Raises:
        ConfigError: It is not so.
    """
    if nodes.count == 1:
        return
    place = f"{nodes.host}:{nodes.port}"
    if nodes.number == 0:
        try:
            with socket.socket() as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind(("", nodes.port))
        except OSError as error:
            taken = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise ConfigError(
                f"--master {place}: the port {taken} on this machine; choose another, on all machines"
            ) from None
        return
    until = time.monotonic() + wait
    while True:
        try:
            socket.create_connection((nodes.host, nodes.port), timeout=POLL * 10).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise ConfigError(
                    f"--master {place} does not answer after {wait:.0f} s ({error.strerror or error}); start llmctl with --node-rank 0 "
                    "there, or check address, port and firewall"
                ) from None
        time.sleep(POLL)
