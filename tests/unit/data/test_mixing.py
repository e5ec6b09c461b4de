"""Mixtures: every file has its share of each epoch, all of its rows come before any of them again."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.mixing import Mixture
from llmctl.errors import ConfigError

PARTS = st.lists(st.tuples(st.integers(1, 30), st.floats(0.1, 10)), min_size=1, max_size=4)


def test_without_weights_an_epoch_is_every_row_once():
    whole = Mixture([3, 4])
    assert whole.epoch(2, 5, False).tolist() == [*range(7)]
    assert whole.epoch(2, 5, True).tolist() == np.random.default_rng([5, 2]).permutation(7).tolist()


@given(parts=PARTS, shuffle=st.booleans(), seed=st.integers(0, 99))
def test_files_have_their_shares_and_give_all_rows_before_any_again(parts, shuffle, seed):
    sizes, weights = zip(*parts, strict=True)
    mixture, starts = Mixture(sizes, weights), np.cumsum([0, *sizes])
    for count, weight in zip(mixture.counts, weights, strict=True):
        assert abs(count - sum(sizes) * weight / sum(weights)) < 1
    seen = Counter()
    for epoch in range(4):
        order = mixture.epoch(epoch, seed, shuffle)
        assert order.tolist() == mixture.epoch(epoch, seed, shuffle).tolist() and len(order) == sum(sizes)
        for part, count in enumerate(mixture.counts):
            mine = order[(order >= starts[part]) & (order < starts[part + 1])]
            assert len(mine) == count
            seen.update(mine.tolist())
            times = [seen[row] for row in range(starts[part], starts[part + 1])]
            assert max(times) - min(times) <= 1


def test_unshuffled_files_take_turns_evenly():
    assert Mixture([2, 6], [1, 3]).epoch(0, 0, False).tolist() == [2, 0, 3, 4, 5, 1, 6, 7]


def test_an_order_depends_on_the_seed():
    mixture = Mixture([20, 20], [1, 3])
    assert mixture.epoch(0, 1, True).tolist() != mixture.epoch(0, 2, True).tolist()


def test_a_file_without_any_row_in_an_epoch_is_named():
    Mixture([5, 5], [1, 9]).check(["a", "b"])
    with pytest.raises(ConfigError, match="no example of b is left to train on"):
        Mixture([5, 0], [1, 1]).check(["a", "b"])
    with pytest.raises(ConfigError, match="gives a none of the 10 rows of an epoch"):
        Mixture([5, 5], [1, 99]).check(["a", "b"])
