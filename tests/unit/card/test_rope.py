"""Scaled contexts: frequencies and factors against recordings of transformers, keys, the longest sequence."""

import json
from pathlib import Path

import numpy as np
import pytest

from llmctl import plugins
from llmctl.card.rope import RopeParams, context_length, rope_rule
from llmctl.checkpoint.hf_config import normalize
from llmctl.errors import ConfigError

CASES = json.loads((Path(__file__).resolve().parents[2] / "goldens" / "rope" / "scaling.json").read_text())
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [1.0, 4.0]}
ROTARY = ("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3")


def dims_of(family, **changes):
    card = plugins.load(family).card
    config = card.config_from_dims(card.dims_of(next(iter(card.sizes))))
    return card.dims_from_config({**config, **changes})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["about"])
def test_frequencies_and_factors_are_those_of_transformers(case):
    config = normalize(case["config"])
    scaling, longest = config["rope_scaling"], config["max_position_embeddings"]
    rule, given = rope_rule(scaling), (config["head_dim"], config["rope_theta"], longest)
    for length, expected in (
        (0, case["within"]),
        (case["trained"], case["within"]),
        (case["trained"] + 1, case["beyond"]),
    ):
        np.testing.assert_allclose(rule.apply(RopeParams(*given, length), scaling), expected, rtol=2e-6)
    assert rule.factor(RopeParams(*given), scaling) == pytest.approx(case["factor"], rel=1e-12)
    if rule.by_length:
        assert rule.stable_length(RopeParams(*given), scaling) == case["trained"]


def test_recordings_scale_and_cross_the_trained_length():
    assert any(case["within"] != case["beyond"] for case in CASES) and any(case["factor"] > 1.1 for case in CASES)


@pytest.mark.parametrize("family", ROTARY)
def test_every_rotary_family_reads_yarn_and_longrope(family):
    dims = dims_of(family, rope_scaling=YARN)
    plugin = plugins.load(family)
    if family != "qwen2_moe":
        rope = plugin.hooks.fused_graph(card=plugin.card, dims=dims).rope
        assert rope.attention_factor == pytest.approx(1.138629436111989) and rope.max_stable_length is None
    longrope = {**LONGROPE, "original_max_position_embeddings": 4096}
    assert dims_of(family, rope_scaling=longrope).rope_scaling == longrope


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({**YARN, "beta_fast": "32"}, "beta_fast='32' must be a number, 0 or above, or null"),
        ({**YARN, "factor": -4.0}, "factor=-4.0 must be a number, 0 or above, or null"),
        ({**YARN, "truncate": 1}, "truncate=1 must be true or false"),
        ({**YARN, "temperature": 2.0}, "of type 'yarn' does not know temperature"),
        ({**LONGROPE, "long_factor": 4.0}, "long_factor=4.0 must be a list of numbers above 0"),
        ({**LONGROPE, "short_factor": [1.0, 0]}, "short_factor=.* must be a list of numbers above 0"),
        (
            {"rope_type": "yarn"},
            "factor=None must be a number above 0, or original_max_position_embeddings must be there",
        ),
        ({"rope_type": "longrope", "long_factor": [1.0]}, "short_factor=None must be a list of numbers above 0"),
    ],
)
def test_wrong_values_are_named(scaling, message):
    with pytest.raises(ConfigError, match=message):
        rope_rule(scaling)


def test_factors_of_longrope_must_fit_the_head():
    with pytest.raises(ConfigError, match="must have 4 numbers, one for each pair, not 2"):
        rope_rule(LONGROPE).apply(RopeParams(8, 1e4, 64), LONGROPE)


def test_yarn_extends_the_context_also_where_config_json_has_the_trained_length():
    assert context_length(dims_of("qwen2", max_position_embeddings=32768, rope_scaling=YARN)) == 131072
    assert context_length(dims_of("qwen2", max_position_embeddings=131072, rope_scaling=YARN)) == 131072
    assert context_length(dims_of("qwen2", max_position_embeddings=32768)) == 32768
    assert (
        context_length(dims_of("llama", max_position_embeddings=512, rope_scaling={"type": "yarn", "factor": 2.0}))
        == 1024
    )
    assert context_length({"layers": 2}) == 0


def test_a_trained_length_outside_of_the_object_is_read_where_transformers_reads_it():
    inside = normalize({"rope_scaling": {**LONGROPE, "type": "su"}, "original_max_position_embeddings": 4096})
    assert inside == {"rope_scaling": {**LONGROPE, "original_max_position_embeddings": 4096}}
    assert normalize({"rope_scaling": None, "original_max_position_embeddings": 4096}) == {"rope_scaling": None}
