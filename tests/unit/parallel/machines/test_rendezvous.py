"""Launchers meet before anything starts: who is missing, what differs, who listens at the port."""

import re
import socket
import threading

import pytest

from llmctl.errors import ConfigError
from llmctl.parallel.launch import free_ports
from llmctl.parallel.machines.nodes import Nodes
from llmctl.parallel.machines.rendezvous import GREETING, Stopped, differences, meet, meet_ranks
from llmctl.parallel.rank import Rank

FACTS = {"llmctl": "1", "train.seed": "42"}


def all_meet(*facts, numbers=None, count=None, wait=20.0):
    """What each of several machines gets, each with its facts: None or the error's text."""
    (port,) = free_ports(1)
    numbers = numbers or range(len(facts))
    got = [None] * len(facts)

    def one(place, number):
        try:
            meet(Nodes(count or len(facts), number, "127.0.0.1", port), facts[place], lambda: False, wait)
        except ConfigError as error:
            got[place] = str(error)

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(numbers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with socket.socket() as after:
        after.bind(("127.0.0.1", port))  # Rank 0 needs the port at once.
    return got


def test_machines_with_the_same_facts_go_on():
    assert all_meet(FACTS, FACTS, FACTS) == [None, None, None]


def test_all_are_told_what_differs():
    got = all_meet(FACTS, {**FACTS, "train.seed": "7", "extra": "1"})
    for text in got:
        assert "start all with one version and one configuration" in text
        assert "train.seed: 42 on machine 0, 7 on machine 1" in text and "extra: None on machine 0" in text


def test_a_machine_that_does_not_come_is_named_with_the_time():
    text = all_meet(FACTS, FACTS, numbers=(0, 2), count=3, wait=0.5)
    assert all("machine 1 of 3 did not come to --master 127.0.0.1" in one and "within 0 s" in one for one in text)


def test_who_is_waited_for_is_printed_once(monkeypatch, capsys):
    monkeypatch.setattr("llmctl.parallel.machines.rendezvous.NOTICE", 0.1)
    all_meet(FACTS, FACTS, numbers=(0, 2), count=4, wait=1.0)
    (port,) = free_ports(1)
    with pytest.raises(ConfigError):
        meet(Nodes(2, 1, "127.0.0.1", port), FACTS, lambda: False, wait=0.5)
    printed = capsys.readouterr().err
    assert (
        len(re.findall(r"waiting up to 1 s for machines 1,( 2,)? 3 of 4 to come to --master 127.0.0.1", printed)) == 1
    )
    assert f"waiting up to 0 s for machine 0 at --master 127.0.0.1:{port} (Connection refused)" in printed


def test_ranks_of_another_launcher_meet_by_their_numbers():
    (port,) = free_ports(1)
    got = [None, None]

    def come(number):
        try:
            meet_ranks(Rank(number, 2), f"localhost:{port}", {"train.seed": number})
        except ConfigError as error:
            got[number] = str(error)

    threads = [threading.Thread(target=come, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got[0] == got[1]
    assert "do not train the same" in got[0] and "train.seed: 0 on rank 0, 1 on rank 1" in got[0]
    with pytest.raises(ConfigError, match="PADDLE_MASTER must have HOST:PORT, the address of rank 0"):
        meet_ranks(Rank(0, 2), "localhost", {})
    with pytest.raises(ConfigError, match="rank 1 of 2 did not come to --master localhost:"):
        meet(Nodes(2, 0, "localhost", port), FACTS, lambda: False, wait=0.0, kind="rank")
    with pytest.raises(ConfigError, match="does not answer .*; start llmctl as rank 0 there"):
        meet(Nodes(2, 1, "localhost", port), FACTS, lambda: False, wait=0.0, kind="rank")


def test_nobody_listens_any_more_when_the_others_go_on():
    (port,) = free_ports(1)
    first = threading.Thread(target=meet, args=(Nodes(2, 0, "127.0.0.1", port), FACTS, lambda: False))
    first.start()
    meet(Nodes(2, 1, "127.0.0.1", port), FACTS, lambda: False)
    # Rank 0 will listen here: a connection to what listened before would be lost.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    first.join()


def test_two_machines_with_one_number_are_refused():
    first, *_ = all_meet(FACTS, FACTS, FACTS, numbers=(0, 1, 1), wait=3.0)
    assert "two machines have --node-rank 1" in first


def test_a_port_in_use_and_a_machine_0_that_does_not_answer():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: the port is in use"):
            meet(Nodes(2, 0, "127.0.0.1", port), FACTS, lambda: False)
    with pytest.raises(ConfigError, match=f"127.0.0.1:{port} does not answer after 0 s .*refused.*--node-rank 0"):
        meet(Nodes(2, 1, "127.0.0.1", port), FACTS, lambda: False, wait=0.0)


def test_a_machine_sends_nothing_to_what_is_no_launcher(monkeypatch):
    monkeypatch.setattr("llmctl.parallel.machines.rendezvous.TURN", 0.3)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match="does not answer"):
            meet(Nodes(2, 1, *other.getsockname()), FACTS, lambda: False, wait=0.1)
        guest, _ = other.accept()
        assert guest.recv(1) == b""


def test_a_stranger_at_the_port_does_no_harm():
    (port,) = free_ports(1)
    done = threading.Event()

    def host():
        meet(Nodes(2, 0, "127.0.0.1", port), FACTS, lambda: False, 20.0)
        done.set()

    thread = threading.Thread(target=host)
    thread.start()
    for said in (b"GET / HTTP/1.1\r\n\r\n", b""):
        while True:
            try:
                stranger = socket.create_connection(("127.0.0.1", port))
                break
            except ConnectionRefusedError:
                continue
        with stranger:
            assert stranger.recv(len(GREETING)) == GREETING
            stranger.sendall(said)
    meet(Nodes(2, 1, "127.0.0.1", port), FACTS, lambda: False, 20.0)
    thread.join()
    assert done.is_set()


def test_a_signal_ends_the_waiting():
    (port,) = free_ports(1)
    for number in (0, 1):
        with pytest.raises(Stopped):
            meet(Nodes(2, number, "127.0.0.1", port), FACTS, lambda: True)


def test_equal_facts_do_not_differ():
    assert differences(FACTS, dict(FACTS), "here", "there") == ""
