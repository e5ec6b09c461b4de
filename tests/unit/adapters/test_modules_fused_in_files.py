"""Adapters of Baichuan, whose files pack queries, keys and values into one layer."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from llmctl import plugins
from llmctl.adapters import folder as folders
from llmctl.adapters import targets
from llmctl.adapters.adapter import Adapter, LoraWeights
from llmctl.card.tiny import tiny_dims
from llmctl.config.common import MethodConfig
from llmctl.errors import ConfigError
from llmctl.jobs import common


@pytest.fixture(scope="module")
def baichuan():
    plugin = plugins.load("baichuan")
    return plugin, tiny_dims(plugin.card)


def made(plugin, dims, names):
    rng, rows = np.random.default_rng(1), targets.linears(plugin.card, dims)
    return {
        path: LoraWeights(rng.normal(size=(rows[path].shape[0], 2)), rng.normal(size=(2, rows[path].shape[1])), 2.0)
        for path in targets.choose(plugin.card, dims, names)
    }


@pytest.mark.parametrize("names", [["q_proj", "k_proj", "v_proj"], ["q_proj", "v_proj"]])
def test_the_packed_layer_gets_one_adapter_that_does_the_same(baichuan, tmp_path: Path, names):
    plugin, dims = baichuan
    parts = made(plugin, dims, names)
    folders.write(tmp_path, Adapter(parts), plugin, dims, "float64")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    rank = 2 * len(names)
    assert config["target_modules"] == ["W_pack"] and (config["r"], config["lora_alpha"]) == (rank, 2 * rank)
    for layer in range(dims.layers):
        name = f"base_model.model.model.layers.{layer}.self_attn.W_pack"
        change = 2.0 * tensors[name + ".lora_B.weight"] @ tensors[name + ".lora_A.weight"]
        path = f"baichuan.layers.{layer}.self_attn."
        zero = np.zeros((dims.hidden, dims.hidden))
        each = [parts.get(path + n) for n in ("q_proj", "k_proj", "v_proj")]
        expected = np.concatenate([zero if part is None else 2.0 * (part.a @ part.b).T for part in each])
        np.testing.assert_allclose(change, expected, atol=1e-12)
    back = folders.read(tmp_path, plugin, dims).layers
    assert back.keys() == parts.keys()
    assert all(
        np.array_equal(back[path].a, part.a) and np.array_equal(back[path].b, part.b) for path, part in parts.items()
    )


def test_lengths_of_a_part_of_the_packed_layer_are_refused(baichuan):
    method = MethodConfig(name="lora", dora=True, targets=["q_proj"])
    with pytest.raises(ConfigError, match=r"one layer model.layers.0.self_attn.W_pack.*add k_proj, v_proj to"):
        common._check_method(method, *baichuan)
    common._check_method(MethodConfig(name="lora", dora=True, targets=["q_proj", "k_proj", "v_proj"]), *baichuan)
