"""What ranks hear of the first failure: forks of this process, over gloo."""

import os
import threading
import time

import paddle
import pytest

from llmctl.parallel import collectives, rank, stores
from llmctl.parallel.faults import watch
from llmctl.parallel.faults.failures import HEARD, Failures
from llmctl.parallel.rank import KNOWN, PeerLost
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks


class Store:
    """A store of one process."""

    def __init__(self):
        self.counts, self.values = {}, {}

    def add(self, key, amount):
        self.counts[key] = self.counts.get(key, 0) + amount
        return self.counts[key]

    def set(self, key, value):
        self.values[key] = value

    def get(self, key):
        return self.values[key]


def test_the_first_failure_is_told_with_its_exit_code_and_later_ones_hear_it():
    store, first, second, third = Store(), *(Failures(number, 3) for number in range(3))
    assert first.look(store) is None
    assert first.tell(store, "no data: ü\udce9", 2, False) is None
    for other in (second, third):
        heard = other.tell(store, "connection reset", 1, True)
        assert (str(heard), heard.code, heard.cause) == ("rank 0 failed: no data: ü?", 2, KNOWN)
        assert other.look(store) is heard
    assert store.counts[HEARD] == 2 and first.look(store) is None


def test_the_first_waits_until_all_others_have_heard():
    store, first, second = Store(), Failures(0, 2), Failures(1, 2)
    hears = threading.Timer(0.1, second.look, [store])
    hears.start()
    began = time.monotonic()
    first.tell(store, "no data", 2, True)
    assert store.counts[HEARD] == 1 and time.monotonic() - began < 2.9


def test_what_was_heard_is_known_when_the_store_is_gone():
    store, other = Store(), Failures(1, 2)
    Failures(0, 2).tell(store, "no data", 2, False)
    heard = other.look(store)
    assert heard and other.tell(None, "connection reset", 1, True) is heard
    assert Failures(1, 2).tell(None, "connection reset", 1, True) is None


def _cut_off(ranks, failing, wait, file):
    """One rank makes a mistake and ends; the other one waits for it, and writes down what it then ends with."""
    if ranks.rank.number == failing:
        rank._tell("no data", 2, True)
        os._exit(2)
    try:
        wait(ranks)
    except Exception as error:
        lost = rank._lost(error)
        file.write_text(f"{lost}, {lost.code}")
    os._exit(0)


def _sum(ranks):
    collectives.all_reduce(paddle.ones([2]), ranks.world)


def _barrier(ranks):
    ranks.barrier()


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("wait", [_sum, _barrier])
def test_a_rank_that_waits_for_one_that_made_a_mistake_ends_as_that_one(failing, wait, tmp_path):
    """Also where that one holds the store, which is gone with it."""
    with pytest.raises(AssertionError, match="ended without an answer"):
        run_ranks(2, _cut_off, failing, wait, tmp_path / "said")
    assert (tmp_path / "said").read_text() == f"rank {failing} failed: no data, 2"


def _stays(ranks):
    """Rank 1 fails, and stays; rank 0 waits for it."""
    if ranks.rank.number == 1:
        rank._tell("no data", 2, True)
        stores.connection().get("ended")
    else:
        told = []

        def end(lost):
            told.append((str(lost), lost.code))
            stores.connection().set("ended", b"yes")

        failures = Failures(0, 2)
        watch.start(stores.connection, 0, 2, 60.0, look=failures.look, end=end)
    collectives.all_reduce(paddle.ones([2]), ranks.world)
    ranks.close = lambda: None
    return ranks.rank.number or told[0]


def test_a_wait_that_does_not_break_is_ended(monkeypatch):
    monkeypatch.setattr(watch, "AFTER", 0.2)
    monkeypatch.setattr("llmctl.parallel.mesh.end_with", lambda *_: None)
    assert run_ranks(2, _stays) == [("rank 1 failed: no data", 2), 1]


def test_a_rank_that_waits_for_the_groups_of_the_start_hears_of_a_failure(monkeypatch, capfd):
    """It waits in the store, for the address of a group that the other rank was to make, and not for 15 minutes."""
    own = stores.own

    def fails(key, common, holds):
        if os.environ[rank.NUMBER] == "2" and holds:
            rank._tell("no data", 2, False)
            time.sleep(60)
        return own(key, common, holds)

    monkeypatch.setattr(stores, "own", fails)
    monkeypatch.setattr(watch, "AFTER", 0.2)
    monkeypatch.setattr("llmctl.testing.ranks.GRACE", 1.0)
    # Ranks 0 and 1 have their groups; rank 3 waits for rank 2.
    with pytest.raises(AssertionError):
        run_ranks(4, lambda ranks: time.sleep(2), topology=Topology(data=2, tensor=2))
    assert capfd.readouterr().err.count("error: rank 2 failed: no data") == 1


def _exchanges(ranks):
    """Rank 1 does not come to an exchange of values; what rank 0 waits in meanwhile, and then ends with."""
    if ranks.rank.number == 1:
        stores.connection().get("seen")
        os._exit(0)
    seen = []

    def look():
        while not watch.WAIT.what:
            time.sleep(0.01)
        seen.append(watch.WAIT.what)
        stores.connection().set("seen", b"yes")

    threading.Thread(target=look, daemon=True).start()
    with pytest.raises(PeerLost) as lost:
        ranks.all_gather_object(1, ranks.axis("data"))
    print(seen, lost.value)
    os._exit(0)


def test_an_exchange_of_values_is_named_while_it_waits_and_when_it_breaks(capfd):
    with pytest.raises(AssertionError, match="ended without an answer"):
        run_ranks(2, _exchanges)
    said = capfd.readouterr().out
    assert "['an exchange of values over data'] another rank did not come to an exchange of values over data" in said
