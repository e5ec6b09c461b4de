"""Degrees that do not divide a model are refused, with those that do."""

import pytest

from llmctl import plugins
from llmctl.card.sharding import split_of
from llmctl.config.common import MethodConfig
from llmctl.config.parallel import ParallelConfig
from llmctl.errors import ConfigError
from llmctl.jobs.degrees import check


def card_and_dims(family="llama", size="llama2-7b", **changes):
    card = plugins.load(family).card
    return card, card.dims_of(size).replace(**changes)


@pytest.mark.parametrize(
    ("keys", "method", "model", "message"),
    [
        ({"tensor": 3}, {}, {}, r"parallel\.tensor=3 does not divide heads=32 of the model; use one of 1, 2, 4, 8, 16, 32$"),
        ({"tensor": 8}, {}, {"heads": 12, "kv_heads": 12}, r"does not divide heads=12 .* use one of 1, 2, 4$"),
        ({"tensor": 4}, {}, {"kv_heads": 6, "heads": 24}, r"does not divide kv_heads=6"),
        ({"pipeline": 40}, {}, {}, r"parallel\.pipeline=40 for a model of 32 layers; use at most 32"),
        (
            {"pipeline": 16, "chunks": 3},
            {},
            {},
            r"parallel\.pipeline=16 x parallel\.chunks=3 = 48 parts for a model of 32 layers",
        ),
        ({"pipeline": 2, "stages": [16, 15]}, {}, {}, r"have 31 layers together, and the model has 32"),
        ({"expert": 2}, {}, {}, r"parallel\.expert=2 has no effect: the model has no experts"),
        (
            {"tensor": 32},
            {"name": "lora", "base": "nf4"},
            {"ffn": 11008 // 2},
            r"cuts the 5504 inputs of .*down_proj\.weight inside the groups of 64 that method\.base=nf4 .*; use one of 1, 2, or method\.base=float$",
        ),
    ],
)  # fmt: skip
def test_degrees_that_do_not_divide_the_model(keys, method, model, message):
    with pytest.raises(ConfigError, match=message):
        check(ParallelConfig(**keys), MethodConfig(**method), *card_and_dims(**model))


def test_experts_that_are_not_divided():
    mixture = card_and_dims("mixtral", "8x7b")
    check(ParallelConfig(expert=4), MethodConfig(), *mixture)
    with pytest.raises(ConfigError, match=r"parallel\.expert=3 does not divide the 8 experts .* one of 1, 2, 4, 8"):
        check(ParallelConfig(expert=3), MethodConfig(), *mixture)


def test_ranks_may_share_a_kv_head_and_have_unlike_shares_of_the_vocabulary():
    check(ParallelConfig(tensor=8), None, *card_and_dims(kv_heads=2, vocab=32001))


@pytest.mark.parametrize("degree", [2, 3, 4, 5, 8, 16])
def test_the_rule_is_that_of_the_split(degree):
    card, dims = card_and_dims(vocab=5 * 2**10 * 3)
    try:
        for tensor in card.expand(dims):
            split_of(tensor, dims, degree)
        divides = True
    except ValueError:
        divides = False
    try:
        check(ParallelConfig(tensor=degree), None, card, dims)
        assert divides
    except ConfigError:
        assert not divides
