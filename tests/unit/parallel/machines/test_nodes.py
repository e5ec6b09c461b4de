"""Several machines: their options, and where they meet."""

import socket
import sys

import pytest

from llmctl.errors import ConfigError
from llmctl.parallel.machines.nodes import Nodes, check_interface, check_ipv4, make_nodes, own_address


def test_one_machine_needs_nothing():
    assert make_nodes(1, None, None, None) == Nodes() and own_address(Nodes()) == "127.0.0.1"


def test_options_make_the_machines():
    assert make_nodes(2, 1, "10.0.0.1:6170", "eth0") == Nodes(2, 1, "10.0.0.1", 6170, "eth0")
    assert own_address(Nodes(2, 1, "127.0.0.1", 6170)) == "127.0.0.1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((1, 1, None, None), "--node-rank has no effect on one machine; add --nnodes"),
        ((1, None, "a:1", None), "--master has no effect"),
        ((2, None, "a:1", None), "--nnodes 2 needs --node-rank, the number of this machine from 0 to 1"),
        ((2, 2, "a:1", None), "from 0 to 1, not 2"),
        ((2, 0, None, None), "needs --master HOST:PORT"),
        ((2, 0, "a", None), "needs --master HOST:PORT, .* not a$"),
        ((2, 0, "a:0", None), "not a:0"),
        ((2, 0, ":70", None), "not :70"),
        ((2, 0, "a:99999", None), "not a:99999"),
        ((2, 0, "http://a:70", None), "not http://a:70$"),
        ((2, 0, "[::1]:70", None), r"not \[::1\]:70; give a name or an IPv4 address, an IPv6 address does not work"),
        ((2, 0, "a b:70", None), "not a b:70"),
    ],
)
def test_options_that_fit_no_machines_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_nodes(*options)


def test_a_network_interface_that_the_machine_has_not_is_named():
    check_interface("")
    check_interface(socket.if_nameindex()[0][1])
    with pytest.raises(
        ConfigError, match="--interface nope0: this machine has no such network interface; use one of .*"
    ):
        check_interface("nope0")


@pytest.mark.skipif(sys.platform != "linux", reason="addresses of interfaces are asked for as Linux tells them")
def test_the_address_of_a_machine_is_that_of_the_interface():
    assert own_address(Nodes(2, 0, "192.0.2.1", 6170, "lo")) == "127.0.0.1"
    with pytest.raises(ConfigError, match="--interface nope0 has no IPv4 address"):
        own_address(Nodes(2, 0, "192.0.2.1", 6170, "nope0"))


@pytest.mark.parametrize(
    ("families", "works"),
    [([socket.AF_INET6], False), ([socket.AF_INET6, socket.AF_INET], True), ([socket.AF_INET], True), ([], True)],
)
def test_a_name_of_an_ipv6_address_only_is_refused(families, works, monkeypatch):
    def addresses(host, port):
        if not families:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(family, 0, 0, "", ()) for family in families]

    monkeypatch.setattr(socket, "getaddrinfo", addresses)
    if works:
        check_ipv4("node1", "--master node1:6170")
    else:
        with pytest.raises(ConfigError, match="--master node1:6170: node1 has an IPv6 address only"):
            check_ipv4("node1", "--master node1:6170")
