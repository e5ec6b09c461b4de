"""LLaMA's card: counts as published, every tensor of a real checkpoint named, unsupported settings refused."""

import json

import pytest
from safetensors import deserialize

from llmctl import ConfigError
from llmctl.testing import validate_card
from llmctl_llama import CARD


def test_the_card_is_valid():
    assert validate_card(CARD) == []


@pytest.mark.parametrize("size", CARD.sizes)
def test_parameter_count_equals_the_published_one(size):
    assert CARD.count(CARD.dims_of(size)) == CARD.sizes[size].parameters
    assert CARD.sizes[size].source.startswith("https://")


@pytest.mark.assets
@pytest.mark.parametrize("case", ["mha_untied", "gqa_tied", "headdim_attnbias", "rope_llama3", "bf16"])
def test_the_table_names_exactly_the_tensors_of_a_checkpoint(assets, case):
    folder = assets / "goldens" / f"llama_{case}"
    dims = CARD.dims_from_config(json.loads((folder / "config.json").read_text()))
    stated = {t.torch_name: t.shape[::-1] if t.transpose else t.shape for t in CARD.expand(dims)}
    stored = {}
    for file in folder.glob("*.safetensors"):
        stored.update({name: tuple(row["shape"]) for name, row in deserialize(file.read_bytes())})
    assert stated == stored


def test_unsupported_activation_is_refused():
    config = CARD.config_from_dims(CARD.dims_of("llama2-7b"))
    with pytest.raises(ConfigError, match="hidden_act='gelu' is not supported by llama; supported: 'silu'"):
        CARD.dims_from_config({**config, "hidden_act": "gelu"})


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (
            {"rope_type": "proportional", "factor": 4.0},
            "type 'proportional' is not supported; supported: default, linear, dynamic, yarn, longrope, llama3",
        ),
        ({"type": "linear"}, "factor=None must be a number above 0"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor=None must be a number above 0"),
    ],
)
def test_unsupported_rope_scaling_is_refused(scaling, message):
    config = CARD.config_from_dims(CARD.dims_of("llama2-7b"))
    with pytest.raises(ConfigError, match=message):
        CARD.dims_from_config({**config, "rope_scaling": scaling})


def test_config_of_a_size_gives_the_same_dims():
    dims = CARD.dims_of("llama3.2-1b")
    assert CARD.dims_from_config(CARD.config_from_dims(dims)) == dims
