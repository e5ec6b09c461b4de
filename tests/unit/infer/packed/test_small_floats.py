"""Checkpoints of FP8, MXFP8, MXFP4 and NVFP4: exact values as floats, and 8-bit codes in the fused engine."""

import json

import numpy as np
import pytest
from kit.model_cli import llmctl
from kit.quantized_models import Quantized, check, compressed, fp4, fp8

from llmctl import plugins
from llmctl.checkpoint.quantized import open_quantized, open_weights
from llmctl.errors import CheckpointError, ConfigError
from llmctl.infer.loader import Packing, packed_model
from llmctl.infer.model_source import open_model
from llmctl.infer.options import EngineOptions
from llmctl.infer.packed.linear import unpack
from llmctl.quant.formats import small_floats


def of_compressed(form, bits, strategy, **more):
    weights = {"num_bits": bits, "type": "float", "symmetric": True, "strategy": strategy, **more}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, "ignore": ["lm_head"]}


FORMS = {
    "blocks of DeepSeek and Qwen": (
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [32, 32], "modules_to_not_convert": ["lm_head"]}, fp8((32, 32)),
    ),
    "blocks that do not fill the weight": ({"quant_method": "fp8", "weight_block_size": [40, 48]}, fp8((40, 48))),
    "scales that are powers of 2": (
        {"quant_method": "fp8", "weight_block_size": [32, 32], "scale_fmt": "ue8m0"}, fp8((32, 32), powers="float8_e8m0fnu"),
    ),
    "one scale": (
        {"quant_method": "fp8", "activation_scheme": "static"},
        fp8((0, 0), "weight_scale", extra={"input_scale": np.ones((), "f4")}),
    ),
    "fbgemm": ({"quant_method": "fbgemm_fp8"}, fp8((1, 0), "weight_scale", extra={"input_scale_ub": np.ones(1, "f4")})),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, fp8((0, 0), "weight_scale")),
    "compressed-tensors, a scale for each output": (of_compressed("float-quantized", 8, "channel"), fp8((1, 0), "weight_scale")),
    "compressed-tensors, blocks": (
        of_compressed("float-quantized", 8, "block", block_structure=[32, 64]), fp8((32, 64), "weight_scale"),
    ),
    "compressed-tensors, blocks of former files": (
        of_compressed("float-quantized", 8, "block", block_structure="32x64"), fp8((32, 64), "weight_scale"),
    ),
    "compressed-tensors, naive": (of_compressed("naive-quantized", 8, "channel"), fp8((1, 0), "weight_scale")),
    "mxfp8": (
        of_compressed("mxfp8-quantized", 8, "group", group_size=32), fp8((1, 32), "weight_scale", powers="uint8"),
    ),
    "nvfp4": (of_compressed("nvfp4-pack-quantized", 4, "tensor_group", group_size=16), fp4("nvfp4")),
    "nvfp4 of modelopt": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, fp4("modelopt")),
    "AutoRound": (
        {"quant_method": "auto-round", "packing_format": "auto_round:llm_compressor", "data_type": "nv_fp", "bits": 4}, fp4("nvfp4"),
    ),
}  # fmt: skip
MXFP4 = of_compressed("mxfp4-pack-quantized", 4, "group", group_size=32), fp4("mxfp4")


def packed(folder, **packing):
    source = open_model(folder, "auto", EngineOptions())
    return packed_model(source.folder, source.plugin, source.dims, Packing(**packing), scheme=source.scheme)


@pytest.mark.parametrize("name", FORMS)
def test_values_are_exact_and_the_fused_engine_rounds_them_to_8_bits(tmp_path, name, monkeypatch):
    monkeypatch.setattr(small_floats, "STRIP", 40)
    quantized = Quantized(tmp_path / "m", *FORMS[name])
    source = open_model(quantized.folder, "auto", EngineOptions())
    stored = open_weights(quantized.folder, source.plugin.card, source.dims).tensors
    for linear, weight in quantized.weights.items():
        np.testing.assert_array_equal(stored[linear].read(), weight.T)
        rows = np.empty((7, weight.shape[0]), "f4")
        stored[linear].read_into(rows, "float32", 5)
        np.testing.assert_array_equal(rows, weight.T[5:12])
    assert check(packed(quantized.folder, kind="float32"), quantized.weights) == {"float32"}
    down = packed(quantized.folder).layers[0].down[0].weight
    weight = quantized.weights["model.layers.0.mlp.down_proj.weight"]
    # Half a step of the largest weight among the 32 inputs that share a scale.
    largest = np.abs(weight.reshape(-1, 32, weight.shape[1])).max(1).repeat(32, axis=0)
    assert (down.kind, down.group) == ("int8", 32) and (np.abs(unpack(down) - weight) <= largest * (0.51 / 127)).all()


def test_mxfp4_is_exact_in_8_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(small_floats, "STRIP", 40)
    assert Quantized(tmp_path / "m", *MXFP4).check() == {"int8"}


def test_floats_may_stand_beside_whole_numbers(tmp_path):
    """mixed-precision of llm-compressor: FP8 projections in a model of 4 bits."""
    four, tensors = compressed("pack-quantized", 4, 32)
    eight = of_compressed("float-quantized", 8, "channel")["config_groups"]["group_0"]
    groups = {
        "group_0": {**eight, "targets": ["re:.*down_proj$"], "format": "float-quantized"},
        "group_1": {**four["config_groups"]["group_0"], "format": "pack-quantized"},
    }
    floats = fp8((1, 0), "weight_scale")

    def by_size(rng, inputs, outputs):
        return (floats if inputs == 96 else tensors)(rng, inputs, outputs)

    quantized = Quantized(tmp_path / "m", {**four, "format": "mixed-precision", "config_groups": groups}, by_size)
    model = quantized.model()
    assert [part.weight.kind for part in model.layers[0].linears] == ["int4", "int4", "int4", "int8"]
    source = open_model(quantized.folder, "auto", EngineOptions())
    stored = open_weights(quantized.folder, source.plugin.card, source.dims).tensors
    for linear, weight in quantized.weights.items():
        np.testing.assert_array_equal(stored[linear].read(), weight.T)


def changed(tensors, **changes):
    """Tensors with some replaced; a change that is None leaves one out."""

    def made(rng, inputs, outputs):
        parts, weight = tensors(rng, inputs, outputs)
        found = {name: changes[name](value) if changes.get(name) else value for name, value in parts.items()}
        return {name: value for name, value in found.items() if name not in changes or changes[name]}, weight

    return made


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("blocks of DeepSeek and Qwen", {"weight_scale_inv": None}, "q_proj .* it has no scales, expected weight_scale_inv or weight_scale"),
        ("blocks of DeepSeek and Qwen", {"weight_scale_inv": lambda x: x[:-1]}, "weight_scale_inv is .1, 2., expected .2, 2."),
        ("blocks of DeepSeek and Qwen", {"weight_scale_inv": lambda x: x.astype("i4")}, "weight_scale_inv has the type int32"),
        ("blocks of DeepSeek and Qwen", {"weight": lambda x: x[1].astype("f4")}, "weight has the type float32, expected float8_e4m3fn"),
        ("blocks of DeepSeek and Qwen", {"weight": lambda x: x[1]}, "weight has the type uint8, expected float8_e4m3fn"),
        ("one scale", {"weight_scale": lambda x: np.ones(3, "f4")}, "weight_scale is .3., expected .64, 1."),
        ("nvfp4", {"weight_global_scale": None}, "floats of 8 bits, but there is no weight_scale_2 or weight_global_scale"),
        ("nvfp4", {"weight_scale": lambda x: (x[0], x[1][:, :-1])}, "weight_scale is .64, 3., expected .64, 4."),
        ("nvfp4", {"weight_packed": lambda x: x.astype("i4")}, "weight_packed has the type int32, expected uint8"),
    ],
)  # fmt: skip
def test_tensors_that_contradict_each_other_are_refused_before_any_is_read(tmp_path, name, changes, message):
    config, tensors = FORMS[name]
    folder = Quantized(tmp_path / "m", config, changed(tensors, **changes)).folder
    source = open_model(folder, "auto", EngineOptions())
    with pytest.raises(CheckpointError, match=message):
        open_quantized(folder, source.scheme, ())


def test_values_that_are_not_finite_are_told_with_their_linear(tmp_path):
    config, tensors = FORMS["blocks of DeepSeek and Qwen"]

    def not_a_number(stored):
        stored[1][5, 7] = 0x7F
        return stored

    quantized = Quantized(tmp_path / "m", config, changed(tensors, weight=not_a_number))
    for packing in ({}, {"kind": "float32"}):
        with pytest.raises(CheckpointError, match="q_proj cannot be read: it has values that are not finite"):
            packed(quantized.folder, **packing)


def test_a_weight_without_scales_is_told_where_nothing_says_how_it_is_quantized(tmp_path):
    config, tensors = FORMS["blocks of DeepSeek and Qwen"]
    quantized = Quantized(tmp_path / "m", config, tensors)
    content = json.loads((quantized.folder / "config.json").read_text())
    del content["quantization_config"]
    (quantized.folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="weight_scale_inv, so its weights are quantized, but no file says how"):
        quantized.model()


def test_unknown_strategies_are_refused(tmp_path):
    config = of_compressed("float-quantized", 8, "block", block_structure="128 by 128")
    folder = Quantized(tmp_path / "m", config, fp8((1, 0), "weight_scale")).folder
    with pytest.raises(ConfigError, match="compressed-tensors with block_structure='128 by 128'"):
        open_model(folder, "auto", EngineOptions())


def test_the_float_model_is_made_by_convert_without_the_settings(tmp_path):
    quantized = Quantized(tmp_path / "m", *FORMS["modelopt"])
    llmctl("convert", quantized.folder, tmp_path / "floats", "--to", "hf", "--dtype", "bfloat16")
    content = json.loads((tmp_path / "floats" / "config.json").read_text())
    assert "quantization_config" not in content and content.get("torch_dtype", content.get("dtype")) == "bfloat16"
    assert plugins.load("llama").card.dims_from_config(content)
