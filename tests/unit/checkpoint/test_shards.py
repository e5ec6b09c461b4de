"""Parts for tensor-parallel ranks, against what attention heads mean."""

import numpy as np
import pytest

from llmctl.card.dims import Dims
from llmctl.card.family import ConfigField, Family, Param
from llmctl.checkpoint.shards import merge, split
from llmctl.plugins.defaults import tensor_parallel_rules

NAMES = ("heads", "kv_heads", "head_dim", "hidden", "ffn")
DIMS = Dims(heads=4, kv_heads=2, head_dim=3, hidden=12, ffn=8)


def rule(shape, degree):
    settings = tuple(ConfigField(name, name) for name in NAMES)
    card = Family("x", ("X",), (Param("w", shape),), settings, {}, "a.b:C")
    return tensor_parallel_rules(card, DIMS, degree)["w"]


def test_one_after_another_gives_each_rank_its_heads_of_all_three():
    whole = np.arange(36).reshape(3, 4, 3).reshape(1, 36)
    first = split(whole, rule("hidden, 3*heads*head_dim", 2), 0, 2)
    expected = np.arange(36).reshape(3, 4, 3)[:, :2].reshape(1, -1)
    assert np.array_equal(first, expected)


def test_interleaved_gives_each_rank_whole_heads():
    whole = np.arange(36).reshape(1, 36)
    assert np.array_equal(split(whole, rule("hidden, heads*3*head_dim", 2), 1, 2), whole[:, 18:])


def test_fewer_key_heads_than_ranks_are_shared():
    shape = "hidden, heads*head_dim + kv_heads*head_dim + kv_heads*head_dim"
    whole = np.arange(24).reshape(1, 24)
    parts = [split(whole, rule(shape, 4), rank, 4) for rank in range(4)]
    assert parts[1][0].tolist() == [3, 4, 5, 12, 13, 14, 18, 19, 20]
    assert parts[2][0].tolist() == [6, 7, 8, 15, 16, 17, 21, 22, 23]
    assert np.array_equal(merge(parts, rule(shape, 4)), whole)
    parts[1] = parts[1] + 1
    with pytest.raises(ValueError, match="rank 1 has other values of heads"):
        merge(parts, rule(shape, 4))


def test_a_row_parallel_weight_is_cut_along_its_first_axis():
    whole = np.arange(16).reshape(8, 2)
    parts = [split(whole, rule("ffn, hidden", 2), rank, 2) for rank in range(2)]
    assert np.array_equal(np.concatenate(parts), whole)
