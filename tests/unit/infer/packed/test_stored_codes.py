"""GPTQ, AWQ and compressed-tensors checkpoints in the fused engine: values as independent numpy statements have them, no rounding."""

import json
import sys
import warnings

import numpy as np
import pytest
from kit.quantized_models import Quantized, awq, check, compressed, gptq, words

from llmctl.checkpoint.folder import open_folder
from llmctl.checkpoint.quantized import open_quantized
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


@pytest.mark.parametrize(
    "settings", [{}, {"version": None, "format": "gemm", "checkpoint_format": "gemm"}], ids=["AutoAWQ", "GPTQModel"]
)
def test_awq_codes_become_int4(tmp_path, settings):
    config, tensors = awq()
    merged = {key: value for key, value in {**config, **settings}.items() if value is not None}
    assert Quantized(tmp_path / "m", merged, tensors).check() == {"int4"}


def test_awq_for_products_with_one_row_has_words_of_inputs(tmp_path):
    """The layout gemv: groups of an output fill whole words, with more at the end."""

    def tensors(rng, inputs, outputs):
        groups, width = inputs // 32, 4
        codes = rng.integers(0, 16, (outputs, inputs))
        zeros, scales = np.zeros((outputs, 8 * width), int), np.zeros((outputs, 8 * width), "f2")
        zeros[:, :groups] = rng.integers(0, 16, (outputs, groups))
        scales[:, :groups] = rng.uniform(0.01, 0.1, (outputs, groups))
        g = np.arange(inputs) // 32
        weight = ((codes - zeros[:, g]) * scales[:, g].astype("f4")).astype("f4")
        return {"qweight": words(codes, 4, 1), "qzeros": words(zeros, 4, 1), "scales": scales}, weight.T

    assert Quantized(tmp_path / "m", {**awq()[0], "version": "gemv"}, tensors).check() == {"int4"}


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


@pytest.mark.parametrize("shuffled", [False, True])
def test_groups_of_compressed_tensors_may_be_named_for_each_input(tmp_path, shuffled):
    config, tensors = compressed("pack-quantized", 4, 32)

    def with_groups(rng, inputs, outputs):
        parts, weight = tensors(rng, inputs, outputs)
        if not shuffled:
            return {**parts, "weight_g_idx": np.full(inputs, -1, "i4")}, weight
        group = np.random.default_rng(inputs).permutation(inputs) // 32
        codes = np.rint(weight.T / np.repeat(parts["weight_scale"], 32, axis=1))
        return {**parts, "weight_g_idx": group.astype("i4")}, (codes * parts["weight_scale"][:, group]).astype("f4").T

    assert Quantized(tmp_path / "m", config, with_groups).check() == {"int4"}


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
        ({"quant_method": "awq", "version": "gemv_fast"}, "awq with version='gemv_fast'"),
        ({"quant_method": "awq", "format": "marlin", "checkpoint_format": None}, "awq with version='marlin'"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "mxfp6-pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 6, "type": "float"}}},
            },
            "format='mxfp6-pack-quantized'",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "mixed-precision",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 6, "type": "float"}, "format": "float-quantized"}
                },
            },
            "format='float-quantized' and weights of 6 bits, type 'float'",
        ),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "no config_groups of weights"),
        ({"bits": 5}, "gptq with bits=5"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format='marlin'"),
        ({"is_marlin_format": True}, "checkpoint_format='marlin'"),
        ({"dynamic": {"+:.*down_proj": {"bits": 5}}}, "gptq with bits=5, .* .the settings of '.:..down_proj'"),
        (
            {"dynamic": {"+:.*(down_proj": {"bits": 8}}},
            "'...down_proj' in quantization_config is no regular expression",
        ),
        ({"sym": "false"}, "sym='false' must be true or false"),
        (
            {"quant_method": "auto-round", "packing_format": "auto_round:llm_compressor", "data_type": "int"},
            "packing_format='auto_round:llm_compressor'",
        ),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes with load_in_4bit=False"),
        ({"quant_method": "fp8", "expert_dtype": "fp4"}, "fp8 with expert_dtype='fp4'"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "fp8 with weight_block_size=.128."),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4_SVD"}, "modelopt with quant_algo='NVFP4_SVD'"),
        (
            {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "W4A8_AWQ"}, "quant_method": None},
            "quant_algo='W4A8_AWQ'",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "strategy": "block"}}},
            },
            "compressed-tensors with strategy='block'",
        ),
        ({"group_size": 0}, "group_size=0 must be a number of inputs above 0, or -1"),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path, change, message):
    config, tensors = gptq(4)
    merged = {key: value for key, value in {**config, **change}.items() if value is not None}
    folder = Quantized(tmp_path / "m", merged, tensors).folder
    with pytest.raises(ConfigError, match=message):
        open_model(folder, "auto", EngineOptions())


def test_settings_that_do_not_fit_the_tensors_are_refused(tmp_path):
    config, tensors = gptq(4)
    with pytest.raises(CheckpointError, match="q_proj does not fit quantization as gptq .* scales is"):
        Quantized(tmp_path / "a", {**config, "group_size": 64}, tensors).model()

    def without_zeros(rng, inputs, outputs):
        parts, weights = tensors(rng, inputs, outputs)
        return {key: value for key, value in parts.items() if key != "qzeros"}, weights

    with pytest.raises(CheckpointError, match="but no qzeros"):
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


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "gptq", "dynamic": {"-:.*lm_head": {}, "+:.*down_proj": {"group_size": 32}}},
        {"quant_method": "GPTQ"},
        {"quant_method": None, "method": "gptq", "checkpoint_format": None, "format": "gptq", "pack_dtype": "int32"},
        {"quant_method": "auto-round", "checkpoint_format": None, "packing_format": "auto_round:auto_gptq", "data_type": "int",
         "extra_config": {"lm_head": {"bits": 16, "data_type": "float"}}},
    ],
    ids=["dynamic", "in capitals", "names of GPTQModel", "AutoRound"],
)  # fmt: skip
def test_settings_of_gptq_in_the_words_of_other_tools_are_read(tmp_path, settings):
    config, tensors = gptq(4)
    merged = {**config, **settings}
    assert Quantized(tmp_path / "m", {k: v for k, v in merged.items() if v is not None}, tensors).check() == {"int4"}


@pytest.mark.parametrize("file", ["config.json", "quant_config.json"])
def test_settings_of_early_awq_files_are_read(tmp_path, file):
    _, tensors = awq()
    quantized = Quantized(
        tmp_path / "m", {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"}, tensors
    )
    content = json.loads((quantized.folder / "config.json").read_text())
    if file != "config.json":
        (quantized.folder / file).write_text(json.dumps(content.pop("quantization_config")))
        (quantized.folder / "config.json").write_text(json.dumps(content))
    assert quantized.check() == {"int4"}


def test_what_compressed_tensors_adds_beside_weights_is_passed_over(tmp_path):
    """The settings of a dense model, the former name of the key, and scales of activations."""
    config, tensors = compressed("int-quantized", 8, 0)

    def with_inputs(rng, inputs, outputs):
        parts, weight = tensors(rng, inputs, outputs)
        return {**parts, "input_scale": np.ones(1, "f4"), "input_zero_point": np.zeros(1, "i1")}, weight

    quantized = Quantized(tmp_path / "m", {**config, "sparsity_config": {"format": "dense"}}, with_inputs)
    content = json.loads((quantized.folder / "config.json").read_text())
    content["compression_config"] = content.pop("quantization_config")
    (quantized.folder / "config.json").write_text(json.dumps(content))
    assert quantized.check() == {"int8"}


@pytest.mark.parametrize(
    ("key", "value"), [("bits", 8), ("group_size", 64), ("checkpoint_format", "gptq_v2"), ("quant_method", "awq")]
)
def test_two_files_with_settings_must_agree(tmp_path, key, value):
    config, tensors = gptq(4)
    folder = Quantized(tmp_path / "m", config, tensors).folder
    (folder / "quantize_config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ConfigError, match=f"{key}={config[key]!r}, but .*quantize_config.json has {key}={value!r}"):
        open_model(folder, "auto", EngineOptions())


def test_weights_that_the_code_of_a_model_packed_are_refused_by_name(tmp_path):
    """As in ChatGLM's folders of 4 bits."""
    folder = Quantized(tmp_path / "m", *gptq(4)).folder
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "quantization_bit": 4}))
    with pytest.raises(
        ConfigError, match="quantization_bit=4, a layout of its own code, which llmctl does not read. It reads gptq"
    ):
        open_model(folder, "auto", EngineOptions())


def test_weights_of_mlx_are_refused_by_name(tmp_path):
    folder = Quantized(tmp_path / "m", *gptq(4)).folder
    content = json.loads((folder / "config.json").read_text())
    content["quantization"] = content["quantization_config"] = {"group_size": 64, "bits": 4}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(
        ConfigError, match="quantization=.'group_size': 64, 'bits': 4., the layout of MLX, which llmctl does not read"
    ):
        open_model(folder, "auto", EngineOptions())


@pytest.mark.parametrize("method", ["compressed-tensors", "compressed_tensors"])
def test_settings_of_compressed_tensors_may_be_nested(tmp_path, method):
    config, tensors = compressed("pack-quantized", 4, 32)
    del config["quant_method"]
    outer = {"quant_method": method, "quantization_config": config, "sparsity_config": {"format": "dense"}}
    assert Quantized(tmp_path / "m", outer, tensors).check() == {"int4"}


def test_codes_without_settings_are_told(tmp_path):
    quantized = Quantized(tmp_path / "m", *gptq(4))
    content = json.loads((quantized.folder / "config.json").read_text())
    del content["quantization_config"]
    (quantized.folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="qweight, so its weights are quantized, but no file says how"):
        quantized.model()


@pytest.mark.parametrize("v2", [False, True])
def test_symmetric_codes_of_the_other_version_are_told(tmp_path, v2):
    """Read as the other version they give noise, without any other sign."""
    config, tensors = gptq(4, v2=v2, symmetric=True)
    wrong = "gptq" if v2 else "gptq_v2"
    quantized = Quantized(tmp_path / "m", {**config, "checkpoint_format": wrong}, tensors)
    with pytest.raises(
        CheckpointError,
        match=f"zero points are all {9 if v2 else 7}.* checkpoint_format {config['checkpoint_format']};",
    ):
        quantized.model()


@pytest.mark.parametrize(
    ("form", "part", "change", "message"),
    [
        ("gptq", "qweight", lambda x: x.astype("f4"), "qweight has the type float32, expected int32"),
        ("gptq", "scales", lambda x: x.astype("i4"), "scales has the type int32, expected float16"),
        ("gptq", "qzeros", lambda x: x[:, :-1], "qzeros is "),
        ("gptq", "g_idx", lambda x: x[:-1], "g_idx is "),
        ("gptq", "qweight", lambda x: x.reshape(-1), "qweight is "),
        ("gptq", "qweight", None, "but no qweight"),
        ("awq", "qweight", lambda x: x.astype("f2"), "qweight has the type float16, expected int32"),
        ("awq", "qzeros", lambda x: x[:-1], "qzeros is "),
        ("plain", "weight", lambda x: x.astype("f2"), "weight has the type float16, expected int8"),
        ("plain", "weight_scale", lambda x: x[:-1], "weight_scale is "),
        ("plain", "weight_scale", None, "has weight as int8, but no weight_scale"),
        ("packed", "weight_packed", lambda x: x[:, :-1], "weight_packed is "),
        ("packed", "weight_scale", lambda x: x[:, :1], "weight_scale is "),
        ("packed", "weight_shape", lambda x: x.reshape(2, 1), "weight_shape is "),
        ("packed", "weight_shape", lambda x: -x, "the weight is "),
        ("packed", "weight_shape", None, "but no weight_shape"),
    ],
)
def test_tensors_that_contradict_each_other_are_refused_before_any_is_read(tmp_path, form, part, change, message):
    made = {"gptq": lambda: gptq(4), "awq": awq, "plain": lambda: compressed("int-quantized", 8, 0),
            "packed": lambda: compressed("pack-quantized", 4, 32)}  # fmt: skip
    config, tensors = made[form]()

    def changed(rng, inputs, outputs):
        parts, weight = tensors(rng, inputs, outputs)
        if change is None:
            return {name: value for name, value in parts.items() if name != part}, weight
        return {**parts, part: np.ascontiguousarray(change(parts[part]))}, weight

    folder = Quantized(tmp_path / "m", config, changed).folder
    source = open_model(folder, "auto", EngineOptions())
    names = {tensor.torch_name for tensor in source.plugin.card.expand(source.dims)}
    with pytest.raises(CheckpointError, match=f"proj .*{message}"):
        open_quantized(folder, source.scheme, names)


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
