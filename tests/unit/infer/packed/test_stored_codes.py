"""GPTQ, AWQ and compressed-tensors checkpoints in the fused engine: values as independent numpy statements have them, no rounding."""

import json
import sys
import warnings

import numpy as np
import pytest
from kit.quantized_models import Quantized, awq, check, compressed, gptq

from llmctl.checkpoint.folder import open_folder
from llmctl.errors import CheckpointError, ConfigError, LlmctlError
from llmctl.infer.loader import Packing, packed_model
from llmctl.infer.model_source import open_model
from llmctl.infer.options import EngineOptions
from llmctl.infer.packed.linear import parts_of
from llmctl.infer.select import open_backend


@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_codes_of_2_to_4_bits_become_int4(tmp_path, bits, symmetric, v2):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Quantized(tmp_path / "m", *gptq(bits, v2=v2, symmetric=symmetric)).check() == {"int4"}


def test_gptq_with_shuffled_inputs_has_an_order(tmp_path):
    """Linears that are packed as one share it, or are parts with an order each."""
    alike = Quantized(tmp_path / "a", *gptq(4, order=lambda rng, n: np.random.default_rng(n).permutation(n)))
    assert alike.check() == {"int4"}
    layer = alike.model().layers[1]
    assert all(part.weight.order is not None for part in (layer.qkv, layer.out, layer.up[0], layer.down[0]))
    several = Quantized(tmp_path / "b", *gptq(4, order=lambda rng, n: rng.permutation(n)))
    assert several.check() == {"int4"}
    assert [len(parts_of(part.weight)) for part in several.model().layers[1].linears] == [3, 1, 2, 1]


def test_gptq_with_small_groups_keeps_its_values_as_floats(tmp_path):
    assert Quantized(tmp_path / "m", *gptq(4, group=16)).check() == {"float32"}


def test_gptq_of_8_bits_has_exact_values(tmp_path):
    assert Quantized(tmp_path / "m", *gptq(8)).check() == {"int8"}


def test_zero_points_that_v1_files_store_ambiguously_are_counted(tmp_path):
    config, tensors = gptq(4)

    def with_unclear(rng, inputs, outputs):
        parts, weights = tensors(rng, inputs, outputs)
        parts["qzeros"][0, 0] = -1
        return parts, weights

    quantized = Quantized(tmp_path / "m", config, with_unclear)
    with pytest.warns(UserWarning, match="q_proj has 8 zero points that gptq .v1. files store ambiguously"):
        quantized.model()


def test_awq_codes_become_int4(tmp_path):
    assert Quantized(tmp_path / "m", *awq()).check() == {"int4"}


@pytest.mark.parametrize(
    ("form", "bits", "group", "zeros", "kind"),
    [
        ("pack-quantized", 4, 32, None, "int4"),
        ("pack-quantized", 4, 32, "packed", "int4"),
        ("pack-quantized", 4, 32, "int8", "int4"),
        ("pack-quantized", 8, 0, None, "int8"),
        ("int-quantized", 8, 0, None, "int8"),
    ],
)
def test_compressed_tensors_become_int4_and_int8(tmp_path, form, bits, group, zeros, kind):
    assert Quantized(tmp_path / "m", *compressed(form, bits, group, zeros)).check() == {kind}


@pytest.mark.parametrize("form", ["pack-quantized", "int-quantized"])
def test_compressed_tensors_may_have_4_bits_beside_8(tmp_path, form):
    """The up projections have 8 bits, in the same format or, of mixed-precision, in another."""
    (config, four), (other, eight) = compressed("pack-quantized", 4, 32), compressed(form, 8, 32)
    config["config_groups"]["group_1"] = {**other["config_groups"]["group_0"], "targets": ["re:.*(up|gate)_proj$"]}
    if form != "pack-quantized":
        config["format"] = "mixed-precision"
        for name, own in (("group_0", "pack-quantized"), ("group_1", form)):
            config["config_groups"][name]["format"] = own

    def tensors(rng, inputs, outputs):
        return (eight if outputs > inputs else four)(rng, inputs, outputs)

    quantized = Quantized(tmp_path / "m", config, tensors)
    assert quantized.check() == {"int4", "int8"}
    layer = quantized.model().layers[0]
    assert (layer.qkv.weight.kind, layer.up[0].weight.kind) == ("int4", "int8")


def test_the_least_code_of_8_bits_is_kept(tmp_path):
    config, tensors = compressed("int-quantized", 8, 0)

    def with_least(rng, inputs, outputs):
        parts, weight = tensors(rng, inputs, outputs)
        codes = parts["weight"]
        codes[:, 0], codes[3, 1] = -128, 127
        return {**parts, "weight": codes}, (codes * parts["weight_scale"]).astype("f4").T

    assert Quantized(tmp_path / "m", config, with_least).check() == {"int8"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"quant_method": "hqq"},
            "quantized as quant_method='hqq', which llmctl does not read. It reads gptq",
        ),
        ({"quant_method": "awq", "version": "gemv"}, "awq with version='gemv'"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "nvfp4-pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float"}}},
            },
            "format='nvfp4-pack-quantized'",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "mixed-precision",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 8, "type": "float"}, "format": "float-quantized"}
                },
            },
            "compressed-tensors with format='float-quantized'",
        ),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "no config_groups of weights"),
        ({"bits": 5}, "gptq with bits=5"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format='marlin'"),
        ({"dynamic": {"-:.*": {}}}, "gptq with dynamic"),
        ({"group_size": 0}, "group_size=0 must be a number of inputs above 0, or -1"),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path, change, message):
    config, tensors = gptq(4)
    folder = Quantized(tmp_path / "m", {**config, **change}, tensors).folder
    with pytest.raises(ConfigError, match=message):
        open_model(folder, "auto", EngineOptions())


def test_settings_that_do_not_fit_the_tensors_are_refused(tmp_path):
    config, tensors = gptq(4)
    with pytest.raises(CheckpointError, match="q_proj does not fit quantization as gptq .* scales is"):
        Quantized(tmp_path / "a", {**config, "group_size": 64}, tensors).model()

    def without_zeros(rng, inputs, outputs):
        parts, weights = tensors(rng, inputs, outputs)
        return {key: value for key, value in parts.items() if key != "qzeros"}, weights

    with pytest.raises(CheckpointError, match="has qweight, but no .*qzeros"):
        Quantized(tmp_path / "b", config, without_zeros).model()

    def infinite(rng, inputs, outputs):
        parts, weights = tensors(rng, inputs, outputs)
        parts["scales"][0, 0] = np.inf
        return parts, weights

    with pytest.raises(CheckpointError, match="scales has values that are not finite"):
        Quantized(tmp_path / "c", config, infinite).model()


def test_old_settings_beside_config_json_are_read(tmp_path):
    config, tensors = gptq(4, v2=False)
    quantized = Quantized(tmp_path / "m", config, tensors)
    content = json.loads((quantized.folder / "config.json").read_text())
    old = content.pop("quantization_config")
    (quantized.folder / "config.json").write_text(json.dumps(content))
    (quantized.folder / "quantize_config.json").write_text(
        json.dumps({k: v for k, v in old.items() if k != "quant_method"})
    )
    assert quantized.check() == {"int4"}


def test_a_bias_of_zeros_that_the_family_does_not_have_is_left_out(tmp_path):
    config, tensors = gptq(4)

    def with_bias(value):
        def made(rng, inputs, outputs):
            parts, weights = tensors(rng, inputs, outputs)
            return {**parts, "bias": np.full(outputs, value, "f2")}, weights

        return made

    assert Quantized(tmp_path / "a", config, with_bias(0)).check() == {"int4"}
    with pytest.raises(CheckpointError, match="q_proj.bias"):
        Quantized(tmp_path / "b", config, with_bias(1)).model()


def test_what_needs_floats_says_so(tmp_path):
    folder = Quantized(tmp_path / "m", *gptq(4)).folder
    source = open_model(folder, "auto", EngineOptions())
    with pytest.raises(ConfigError, match="quantized already .gptq, 4 bits."):
        packed_model(source.folder, source.plugin, source.dims, Packing(kind="int8"), scheme=source.scheme)
    with pytest.raises(LlmctlError, match="the model is quantized, and this needs the float model"):
        source.plugin.card.dims_from_config(json.loads((folder / "config.json").read_text()))


@pytest.mark.assets
@pytest.mark.parametrize("name", ["gptq_v1_sym", "gptq_v2_asym", "awq_gemm", "ct_int8_w8a8"])
def test_checkpoints_of_other_tools_have_the_values_of_the_independent_statements(assets, tmp_path, name, monkeypatch):
    folder = assets.parent / "quant" / "fixtures" / name
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(assets.parent / "quant"))
    formats = __import__("formats")
    raw, weights = open_folder(folder).tensors, {}
    for linear in {key.rpartition(".")[0] for key in raw if "proj" in key}:
        part = {key.rpartition(".")[2]: info.read() for key, info in raw.items() if key.startswith(linear + ".")}
        if name.startswith("gptq"):
            weight = formats.gptq(**part, bits=4, group=64, v2="v2" in name)
        elif name.startswith("awq"):
            weight = formats.awq(**part, group=64)
        else:
            weight = (part["weight"].astype("f8") * part["weight_scale"]).T.astype("f4")
        weights[linear + ".weight"] = weight
    source = open_model(folder, "auto", EngineOptions())
    model = packed_model(source.folder, source.plugin, source.dims, Packing(), scheme=source.scheme)
    assert check(model, weights) <= ({"int8", "float32"} if name.startswith("ct") else {"int4"})
    assert open_backend(folder).engine == "fused"
