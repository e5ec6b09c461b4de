"""Checkpoints whose linears are quantized in several ways, by rules of the configuration for their names."""

import json

import numpy as np
import pytest
from kit.quantized_models import Quantized, awq, compressed, fp8, gptq

from llmctl.errors import CheckpointError, ConfigError
from llmctl.infer.model_source import open_model
from llmctl.infer.options import EngineOptions
from llmctl.io import patterns


def floats(rng, inputs, outputs):
    weight = rng.normal(size=(outputs, inputs)).astype("f4")
    return {"weight": weight}, weight.T


def by_size(down, up, rest):
    """Tensors of the down projections, of gates and up projections, and of all others, in a model of 64 and 96 inputs."""

    def tensors(rng, inputs, outputs):
        return (down if inputs == 96 else up if outputs == 96 else rest)(rng, inputs, outputs)

    return tensors


def kinds(model):
    return [part.weight.kind for part in model.layers[0].linears]


def test_rules_of_gptqmodel_give_linears_other_bits_and_groups_or_leave_them_out(tmp_path):
    config, four = gptq(4, symmetric=True)
    down = gptq(8, group=96, symmetric=True)[1]
    dynamic = {
        r"-:.*\.(gate|up)_proj": {},
        r"+:.*\.down_proj": {"bits": 8, "group_size": -1},
        # An earlier rule counts.
        r".*proj": {"bits": 4, "group_size": 32},
    }
    quantized = Quantized(tmp_path / "m", {**config, "dynamic": dynamic}, by_size(down, floats, four))
    assert quantized.check() == {"int4", "int8", "float32"}
    assert kinds(quantized.model()) == ["int4", "int4", "float32", "int8"]


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_a_rule_may_change_the_bits_of_some_projections_of_a_joined_weight(tmp_path, bits):
    """Queries keep 4 bits; keys and values are parts of their own where the kind differs."""
    config, four = gptq(4)
    other = gptq(bits)[1]

    def tensors(rng, inputs, outputs):
        return (other if outputs == 32 else four)(rng, inputs, outputs)

    config["dynamic"] = {r".*\.[kv]_proj": {"bits": bits}}
    quantized = Quantized(tmp_path / "m", config, tensors)
    quantized.check()
    assert kinds(quantized.model())[0] == ("int4+int8" if bits == 8 else "int4")


def test_codes_that_a_rule_leaves_out_are_refused_with_their_name(tmp_path):
    config, tensors = gptq(4)
    quantized = Quantized(tmp_path / "m", {**config, "dynamic": {r"-:.*down_proj": {}}}, tensors)
    with pytest.raises(
        CheckpointError, match="down_proj has qweight, so it is quantized, but quantization_config leaves it out"
    ):
        quantized.model()


def test_a_rule_that_backtracks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(patterns, "PATTERN_SECONDS", 0.2)
    config, tensors = gptq(4)
    quantized = Quantized(tmp_path / "m", {**config, "dynamic": {r"(.|..|...)+[A-Z]$": {"bits": 8}}}, tensors)
    with pytest.raises(CheckpointError, match="of quantization_config takes longer than 0.2 seconds for the name"):
        quantized.model()


def test_a_rule_that_does_not_fit_the_tensors_is_told_with_its_own_numbers(tmp_path):
    config, tensors = gptq(4)
    quantized = Quantized(tmp_path / "m", {**config, "dynamic": {r".*down_proj": {"bits": 8}}}, tensors)
    with pytest.raises(
        CheckpointError, match="down_proj does not fit quantization as gptq codes of 8 bits in groups of 32"
    ):
        quantized.model()


@pytest.mark.parametrize(
    "layout", ["auto_round:auto_gptq", "auto_round", "auto_round:gptqmodel", "auto_round:auto_awq"]
)
def test_settings_of_autoround_for_names_and_expressions_are_read(tmp_path, layout):
    v2 = layout in ("auto_round", "auto_round:gptqmodel")
    config, four = awq() if "awq" in layout else gptq(4, v2=v2)
    down = awq(group=96)[1] if "awq" in layout else gptq(8, group=96, v2=v2)[1]
    names = [f"model.layers.{layer}.mlp.{name}_proj" for layer in range(2) for name in ("gate", "up")]
    own = {
        **{name: {"bits": 16, "data_type": "float"} for name in names},
        r".*mlp\.down_proj": {"group_size": -1} if "awq" in layout else {"bits": 8, "group_size": -1},
        "lm_head": {"bits": 16, "act_bits": None},
    }
    settings = {"bits": 4, "group_size": 32, "sym": False, "quant_method": "auto-round", "packing_format": layout,
                "data_type": "int", "extra_config": own}  # fmt: skip
    quantized = Quantized(tmp_path / "m", settings, by_size(down, floats, four))
    quantized.check()
    assert kinds(quantized.model())[:3] == ["int4", "int4", "float32"]


def mixed(form, groups, ignore=("lm_head",)):
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, "ignore": list(ignore)}


def group_of(form, bits, group=32, zeros=None, targets=("Linear",)):
    config, tensors = compressed(form, bits, group, zeros)
    return {**config["config_groups"]["group_0"], "targets": list(targets), "format": form}, tensors


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 7])
def test_compressed_tensors_has_any_number_of_bits_in_words_without_gaps(tmp_path, bits):
    for zeros in (None, "packed"):
        quantized = Quantized(tmp_path / f"{zeros}", *compressed("pack-quantized", bits, 32, zeros))
        assert quantized.check() == {"int4" if bits < 5 else "int8"}


def test_groups_of_compressed_tensors_are_those_of_their_targets(tmp_path):
    """W4A16 beside W8A8 with zero points, and a projection that an expression leaves out."""
    (four, four_of), (eight, eight_of) = (
        group_of("pack-quantized", 4),
        group_of("int-quantized", 8, 0, "int8", ["re:.*down_proj$"]),
    )
    config = mixed("mixed-precision", {"group_0": four, "group_1": eight}, ["lm_head", "re:.*(gate|up)_proj$"])
    quantized = Quantized(tmp_path / "m", config, by_size(eight_of, floats, four_of))
    assert quantized.check() == {"int4", "int8", "float32"}

    def without_zeros(rng, inputs, outputs):
        parts, weight = eight_of(rng, inputs, outputs)
        return {name: value for name, value in parts.items() if name != "weight_zero_point"}, weight

    damaged = Quantized(tmp_path / "n", config, by_size(without_zeros, floats, four_of))
    with pytest.raises(CheckpointError, match="down_proj has weight_scale as float32, but no weight_zero_point"):
        damaged.model()


def test_targets_that_fit_no_linear_leave_it_to_the_shapes(tmp_path):
    """As of files whose modules are called otherwise than their targets."""
    (four, four_of), (eight, eight_of) = (
        group_of("pack-quantized", 4, targets=["re:^other"]),
        group_of("pack-quantized", 8, 0, targets=["re:^more"]),
    )
    config = mixed("pack-quantized", {"group_0": four, "group_1": eight})
    assert Quantized(tmp_path / "m", config, by_size(eight_of, four_of, four_of)).check() == {"int4", "int8"}


def test_scales_of_the_kv_cache_are_passed_over_with_a_warning(tmp_path):
    config, tensors = compressed("pack-quantized", 4, 32)

    def with_scales(rng, inputs, outputs):
        parts, weight = tensors(rng, inputs, outputs)
        return {**parts, "k_scale": np.ones(1, "f4"), "output_scale": np.ones(1, "f4")}, weight

    config["kv_cache_scheme"] = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    quantized = Quantized(tmp_path / "m", config, with_scales)
    with pytest.warns(UserWarning, match="kv_cache_scheme is not used; keys and values are cached as --kv says"):
        assert quantized.check() == {"int4"}


def test_a_pattern_of_compressed_tensors_must_be_an_expression(tmp_path):
    four, tensors = group_of("pack-quantized", 4, targets=["re:*proj"])
    folder = Quantized(tmp_path / "m", mixed("pack-quantized", {"group_0": four}), tensors).folder
    with pytest.raises(ConfigError, match=r"config.json: '\*proj' in quantization_config is no regular expression"):
        open_model(folder, "auto", EngineOptions())


def test_the_settings_of_modelopt_may_stand_in_a_file_of_their_own(tmp_path):
    quantized = Quantized(tmp_path / "m", {}, fp8((0, 0), "weight_scale"))
    content = json.loads((quantized.folder / "config.json").read_text())
    del content["quantization_config"]
    (quantized.folder / "config.json").write_text(json.dumps(content))
    (quantized.folder / "hf_quant_config.json").write_text(
        json.dumps(
            {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
        )
    )
    model = quantized.model()
    assert {part.weight.kind for part in model.layers[0].linears} == {"int8"}
