"""Bloom against recordings of transformers, and what its card says of other files."""

import pytest

from llmctl.testing import check_golden, load_plugin, tiny_dims


@pytest.mark.assets
@pytest.mark.parametrize("case", ["bloom_h4", "bloom_h4_postln", "bloom_h6", "bloom_h6_postln"])
def test_recorded_results_are_repeated(assets, case):
    check_golden(assets / "goldens" / case)


def test_the_feed_forward_layer_is_four_times_as_wide_whatever_n_inner_says():
    """The original never reads n_inner; a model that it could not load would be of no family."""
    card = load_plugin("bloom").card
    config = card.config_from_dims(tiny_dims(card))
    for change in ({}, {"n_inner": None}, {"n_inner": 7}):
        dims = card.dims_from_config({**config, **change})
        shapes = {tensor.name: tensor.shape for tensor in card.expand(dims)}
        assert shapes["bloom.h.0.mlp.dense_h_to_4h.weight"] == (dims.hidden, 4 * dims.hidden)
