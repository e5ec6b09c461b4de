"""Bloom against recordings of transformers, and what its card says of other files."""

import json
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file, save_file

from llmctl.testing import check_golden, load_model, load_plugin, tiny_dims


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


def test_an_output_head_of_its_own_is_read_and_used(tmp_path):
    """Equal to the embedding it repeats the recording of the tied model; doubled it doubles the logits."""
    folder = shutil.copytree(Path(__file__).with_name("goldens") / "bloom", tmp_path / "bloom")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    weights = load_file(folder / "model.safetensors")
    ids, logits = paddle.to_tensor([[5, 9, 20]]), []
    for factor in (1, 2):
        head = factor * weights["transformer.word_embeddings.weight"]
        save_file({**weights, "lm_head.weight": head}, folder / "model.safetensors")
        if factor == 1:
            check_logits(folder)
        logits.append(load_model(folder)[0](ids).numpy())
    np.testing.assert_allclose(logits[1], 2 * logits[0], rtol=1e-6)


def check_logits(folder):
    golden = np.load(folder / "golden.npz")
    found = load_model(folder)[0](paddle.to_tensor(golden["input_ids_single"])).numpy()
    np.testing.assert_allclose(found, golden["logits_single"], atol=1e-4, rtol=0)
