"""Signs of life of other machines."""

import pytest

from llmctl.parallel.faults import heartbeat
from llmctl.parallel.rank import PeerLost


class Store:
    def __init__(self):
        self.counts = {}

    def add(self, key, amount):
        self.counts[key] = self.counts.get(key, 0) + amount
        return self.counts[key]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = [0.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    return now


def wait(signs, clock, seconds, alive=lambda: None):
    for _ in range(int(seconds)):
        clock[0] += 1.0
        alive()
        signs.check()


def test_a_rank_without_a_sign_of_life_is_named(clock, monkeypatch):
    monkeypatch.setenv("LLMCTL_NODES", "2")
    store = Store()
    signs = heartbeat.Signs(store, 0, 3)
    wait(signs, clock, 300, lambda: [store.add(f"llmctl/alive/{rank}", 1) for rank in (1, 2)])
    with pytest.raises(PeerLost, match="rank 1 has given no sign of life for 60 s"):
        wait(signs, clock, 120, lambda: store.add("llmctl/alive/2", 1))


def test_on_one_machine_nobody_is_watched(clock):
    signs = heartbeat.Signs(Store(), 0, 3)
    wait(signs, clock, 300)
