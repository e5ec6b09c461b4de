"""Who waits for whom."""

import paddle

from llmctl.parallel import collectives, stores
from llmctl.parallel.faults import watch
from llmctl.testing.ranks import run_ranks


def _hangs(ranks, seconds):
    """Rank 1 comes to the second operation only when rank 0 has said who waits."""
    told = []

    def tell(text):
        told.append(text)
        stores.connection().set("told", b"yes")

    store = stores.connection()
    watch.start(stores.connection, ranks.rank.number, ranks.rank.size, seconds, tell)
    collectives.all_reduce(paddle.ones([2]), ranks.world)
    if ranks.rank.number == 1:
        store.get("told")
    collectives.all_reduce(paddle.ones([2]), ranks.world)
    return told


def test_rank_0_says_who_waits_in_what_and_where_the_missing_one_is():
    told, *others = run_ranks(3, _hangs, 0.5)
    assert others == [[], []]
    first, waits, missing = told[0].splitlines()
    assert first == "hang: a rank has waited for 0.5 s"
    assert waits == "  ranks 0, 2 wait in all_reduce no. 2 over world"
    assert missing.startswith("  rank 1 is at ") and "test_watch.py:" in missing


def test_a_rank_that_does_not_answer_is_named():
    states = [{"wait": "a", "where": "x.py:1"}, None, {"wait": "", "where": "y.py:2, called from z.py:3"}]
    assert watch.report(states, 25.0).splitlines() == [
        "hang: a rank has waited for 25 s",
        "  rank 0 waits in a",
        "  rank 2 is at y.py:2, called from z.py:3",
        "  rank 1 does not answer",
    ]
