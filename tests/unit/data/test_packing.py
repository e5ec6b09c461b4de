"""Packing: which documents share a row, and what the row's arrays say."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.packing import PACKERS, best_fit, collate, first_come, join, pack

LENGTHS = st.lists(st.integers(1, 12), max_size=40)


def document(ids, **more):
    return SimpleNamespace(input_ids=ids, labels=[*ids[1:], -100], source=f"f:{ids[0]}", **more)


@given(lengths=LENGTHS, how=st.sampled_from(sorted(PACKERS)))
def test_every_document_is_in_one_row_that_holds_it(lengths, how):
    rows = PACKERS[how](lengths, 12)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= 12 for row in rows)


@given(lengths=LENGTHS)
def test_first_come_keeps_the_order_and_opens_a_row_only_when_it_must(lengths):
    rows = first_come(lengths, 12)
    assert [index for row in rows for index in row] == list(range(len(lengths)))
    for row, after in zip(rows, rows[1:], strict=False):
        assert sum(lengths[index] for index in row) + lengths[after[0]] > 12


@given(lengths=LENGTHS)
def test_best_fit_leaves_at_most_one_row_less_than_half_full(lengths):
    filled = [sum(lengths[index] for index in row) for row in best_fit(lengths, 12)]
    assert sum(2 * tokens <= 12 for tokens in filled) <= 1


def test_best_fit_takes_the_fullest_row_that_has_room():
    assert best_fit([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]


def test_positions_restart_and_tokens_end_with_their_document():
    row = join([document([5, 6, 7]), document([8, 9], position_ids=[4, 5], ends=[1, 2])])
    assert (row.input_ids, row.labels) == ([5, 6, 7, 8, 9], [6, 7, -100, 9, -100])
    assert (row.position_ids, row.ends) == ([0, 1, 2, 4, 5], [3, 3, 3, 4, 5])
    assert (row.source, row.documents) == ("f:5, f:8", 2)


def test_nothing_is_asked_of_the_last_token_of_a_document():
    asking = SimpleNamespace(input_ids=[1, 2], labels=[2, 3], source="")
    assert join([asking, asking]).labels == [2, -100, 2, -100]


def test_padding_is_seen_by_nobody():
    arrays = collate([join([document([5, 6, 7])]), join([document([8])])], pad_id=9, multiple=4)
    assert arrays["input_ids"].tolist() == [[5, 6, 7, 9], [8, 9, 9, 9]]
    assert arrays["document_end"].tolist() == [[3, 3, 3, 0], [1, 0, 0, 0]]
    assert arrays["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert arrays["labels"].dtype == np.int64


@pytest.mark.parametrize("how", sorted(PACKERS))
def test_a_document_longer_than_a_row_has_a_row_of_its_own(how):
    rows = pack([document([1, 2]), document(list(range(9))), document([3])], 4, how)
    assert sorted(len(row.input_ids) for row in rows) in ([3, 9], [1, 2, 9])
