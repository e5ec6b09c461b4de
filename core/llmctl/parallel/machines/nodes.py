"""The machines that train together: which one this is, and where all of them meet. Nothing here imports paddle."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import struct
import sys
from dataclasses import dataclass

from llmctl.errors import ConfigError

HOST, PORT = re.compile(r"[A-Za-z0-9._-]+"), re.compile(r"[0-9]{1,5}")
"""A name or an IPv4 address, and a port."""


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

    @property
    def place(self) -> str:
        """Where the machines meet, HOST:PORT."""
        return f"{self.host}:{self.port}"

    @property
    def interface_variables(self) -> dict[str, str]:
        """Variables by which what connects CPUs, or GPUs, takes this network interface."""
        names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if self.interface else ()
        return dict.fromkeys(names, self.interface)


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
    host, port = parse_master(master or "", f"--nnodes {count} needs --master")
    return Nodes(count, number, host, port, interface or "")


def parse_master(text: str, where: str, whose: str = "machine 0") -> tuple[str, int]:
    """Host and port.

    Args:
        text: HOST:PORT.
        where: What asks for it, for messages.
        whose: What has this address, for messages.

    Raises:
        ConfigError: It is not that.
    """
    host, _, port = text.rpartition(":")
    if not HOST.fullmatch(host) or not PORT.fullmatch(port) or not 0 < int(port) < 65536:
        given = f", not {text}" if text else ""
        version = "; give a name or an IPv4 address, an IPv6 address does not work" if host.count(":") > 1 else ""
        raise ConfigError(f"{where} HOST:PORT, the address of {whose} and a free port there{given}{version}")
    return host, int(port)


def check_interface(name: str) -> None:
    """Checks that this machine has a network interface; an empty name is one.

    Raises:
        ConfigError: It has not.
    """
    known = sorted(known for _, known in socket.if_nameindex())
    if name and name not in known:
        raise ConfigError(
            f"--interface {name}: this machine has no such network interface; use one of {', '.join(known)}"
        )


def bound(host: str, port: int) -> socket.socket:
    """A socket at the port where the machines, or ranks, will meet, on this machine.

    Args:
        host: By which others reach this machine, for messages.
        port: The port.

    Raises:
        ConfigError: It is in use, or may not be used.
    """
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        one.bind(("", port))
    except OSError as error:
        one.close()
        taken = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise ConfigError(
            f"--master {host}:{port}: the port {taken} on this machine; choose another, on all machines"
        ) from None
    return one


def check_ipv4(host: str, where: str) -> None:
    """Checks that a name has an IPv4 address; one that nobody knows, perhaps not yet, passes.

    Args:
        host: The name.
        where: Where it is given, for messages.

    Raises:
        ConfigError: It has IPv6 addresses only.
    """
    with contextlib.suppress(OSError):
        if socket.AF_INET not in {family for family, *_ in socket.getaddrinfo(host, None)}:
            raise ConfigError(
                f"{where}: {host} has an IPv6 address only, which does not work; give an IPv4 address, or a name that has one"
            )


def _address_of(interface: str, one: socket.socket) -> str:
    """The IPv4 address of a network interface.

    Raises:
        ConfigError: It has none.
    """
    import fcntl

    try:
        # SIOCGIFADDR of Linux: a struct ifreq of the name, filled with a struct sockaddr_in.
        found = fcntl.ioctl(one, 0x8915, struct.pack("256s", interface.encode()[:15]))
    except OSError:
        raise ConfigError(f"--interface {interface} has no IPv4 address; choose another one") from None
    return socket.inet_ntoa(found[20:24])


def own_address(nodes: Nodes) -> str:
    """The address by which other machines reach this one; ``127.0.0.1`` where there are none.

    Raises:
        ConfigError: The address of machine 0 is not known, or the interface has none.
    """
    if nodes.count == 1:
        return "127.0.0.1"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            if nodes.interface and sys.platform == "linux":
                return _address_of(nodes.interface, one)
            # Nothing is sent: the system chooses the address that it would send from.
            one.connect((nodes.host, nodes.port))
            return str(one.getsockname()[0])
    except OSError as error:
        raise ConfigError(
            f"--master {nodes.host}:{nodes.port}: {error.strerror or error}; give another address"
        ) from None
