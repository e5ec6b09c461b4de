"""bitsandbytes' checkpoints of 4 and 8 bits, against a statement of their values one by one."""

import json

import numpy as np
import pytest
from kit.model_cli import llmctl
from kit.quantized_models import Quantized

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.checkpoint.build import check_model
from llmctl.checkpoint.convert import open_source
from llmctl.checkpoint.formats.dtypes import round_bfloat16, widen
from llmctl.checkpoint.formats.safetensors import PlannedTensor, write_file
from llmctl.checkpoint.quantized import open_quantized, scheme_of
from llmctl.errors import CheckpointError
from llmctl.infer.loader import Packing, packed_model
from llmctl.infer.model_source import open_model
from llmctl.infer.options import EngineOptions
from llmctl.infer.packed.linear import unpack
from llmctl.quant.linear import QuantizedLinear

CONFIG = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}
LEVELS = np.array(
    [
        -1,
        -0.6962,
        -0.5251,
        -0.3949,
        -0.2844,
        -0.1848,
        -0.0911,
        0,
        0.0796,
        0.1609,
        0.2461,
        0.3379,
        0.4407,
        0.5626,
        0.723,
        1,
    ],
    "f4",
)
DTYPE = {"float32": "<f4", "float16": "<f2"}


def parts_of(rng, outputs, inputs, nested, dtype, kind="nf4", block=64):
    """The stored tensors of a random weight, and its values."""
    blocks = -(-outputs * inputs // block)
    codes = rng.integers(0, 16, 2 * (-(-outputs * inputs // 2))).astype(np.uint8)
    state = {"quant_type": kind, "blocksize": block, "dtype": dtype, "shape": [outputs, inputs]}
    parts = {"": (codes[::2] << 4 | codes[1::2])[:, None], "quant_map": LEVELS}
    if nested:
        levels = np.sort(rng.uniform(-1, 1, 256)).astype("f4")
        outer = rng.uniform(0.01, 0.02, -(-blocks // 256)).astype("f4")
        inner = rng.integers(0, 256, blocks).astype(np.uint8)
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.05}
        scales = [levels[code] * outer[i // 256] + np.float32(0.05) for i, code in enumerate(inner)]
        parts |= {"absmax": inner, "nested_absmax": outer, "nested_quant_map": levels}
    else:
        parts["absmax"] = scales = rng.uniform(0.01, 0.1, blocks).astype("f4")
    values = np.array([LEVELS[codes[i]] * scales[i // block] for i in range(outputs * inputs)], "f4").reshape(
        outputs, inputs
    )
    parts[f"quant_state.bitsandbytes__{kind}"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return parts, widen(round_bfloat16(values)) if dtype == "bfloat16" else values.astype(DTYPE[dtype]).astype("f4")


SIZES = {"hidden": 40, "heads": 4, "kv_heads": 2, "head_dim": 10, "ffn": 56, "vocab": 64}
WHOLE_BLOCKS = {**SIZES, "hidden": 64, "head_dim": 16, "ffn": 128}


def write(folder, nested=True, dtype="bfloat16", kind="nf4", change=lambda parts: None, config=CONFIG, sizes=SIZES):
    """A model folder, and the values of its quantized weights."""
    plugin = plugins.load("llama")
    dims = tiny_dims(plugin.card, sizes)
    rng, values, planned = np.random.default_rng(0), {}, {}
    folder.mkdir()
    content = {**plugin.card.config_from_dims(dims), "quantization_config": {**config, "bnb_4bit_quant_type": kind}}
    (folder / "config.json").write_text(json.dumps(content))
    for tensor in plugin.card.expand(dims):
        shape = tensor.shape[::-1] if tensor.transpose else tensor.shape
        stored = {tensor.torch_name: rng.standard_normal(shape).astype("f4")}
        if "proj" in tensor.torch_name:
            parts, values[tensor.torch_name] = parts_of(rng, *shape, nested, dtype, kind)
            change(parts)
            stored = {f"{tensor.torch_name}{'.' if part else ''}{part}": value for part, value in parts.items()}
        planned |= {name: PlannedTensor(value.shape, str(value.dtype), value.tofile) for name, value in stored.items()}
    write_file(folder / "model.safetensors", planned)
    return plugin, dims, values


@pytest.mark.parametrize(
    ("nested", "dtype", "kind"), [(True, "bfloat16", "nf4"), (False, "float16", "nf4"), (True, "float32", "fp4")]
)
def test_weights_have_their_values_in_their_type(tmp_path, nested, dtype, kind):
    plugin, dims, values = write(tmp_path / "m", nested, dtype, kind)
    scheme = scheme_of(tmp_path / "m", json.loads((tmp_path / "m" / "config.json").read_text()))
    opened = open_quantized(tmp_path / "m", scheme, ())
    state = open_source(tmp_path / "m", plugin, dims, opened).state
    for name, wanted in values.items():
        assert opened.tensors[name].dtype == dtype
        np.testing.assert_array_equal(opened.read(name), wanted)
        part = np.empty((3, wanted.shape[1]), "f4")
        opened.tensors[name].read_into(part, "float32", 2)
        np.testing.assert_array_equal(part, wanted[2:5])
    assert len(state) == len(plugin.card.expand(dims))


@pytest.mark.parametrize(
    ("nested", "dtype", "kind", "sizes"),
    [
        (True, "bfloat16", "nf4", WHOLE_BLOCKS),
        (False, "float16", "fp4", WHOLE_BLOCKS),
        (True, "bfloat16", "nf4", SIZES),
    ],
)
def test_a_model_in_memory_keeps_codes_whose_blocks_are_within_rows(tmp_path, nested, dtype, kind, sizes):
    plugin, dims, values = write(tmp_path / "m", nested, dtype, kind, sizes=sizes)
    layers = dict(check_model(tmp_path / "m").layer().named_sublayers())
    for tensor in plugin.card.expand(dims):
        if tensor.torch_name in values:
            layer = layers[tensor.name.removesuffix(".weight")]
            assert isinstance(layer, QuantizedLinear) is (sizes is WHOLE_BLOCKS)
            np.testing.assert_array_equal(layer.weight.numpy(), values[tensor.torch_name].T)


def test_the_fused_engine_runs_the_values(tmp_path):
    *_, values = write(tmp_path / "m")
    source = open_model(tmp_path / "m", "auto", EngineOptions())
    model = packed_model(source.folder, source.plugin, source.dims, Packing(), scheme=source.scheme)
    down = model.layers[1].down[0].weight
    assert down.kind == "bfloat16"
    np.testing.assert_array_equal(unpack(down), values["model.layers.1.mlp.down_proj.weight"].T)


def test_convert_makes_the_float_model(tmp_path):
    plugin, dims, values = write(tmp_path / "m")
    llmctl("convert", tmp_path / "m", tmp_path / "floats", "--to", "hf")
    assert "quantization_config" not in json.loads((tmp_path / "floats" / "config.json").read_text())
    state = open_source(tmp_path / "floats", plugin, dims).state
    found = state["llama.layers.0.self_attn.o_proj.weight"]
    assert found.dtype == "bfloat16"
    np.testing.assert_array_equal(widen(found.numpy()).T, values["model.layers.0.self_attn.o_proj.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts.pop("absmax"), "absmax has no elements, quant_state asks for"),
        (lambda parts: parts.update(absmax=parts["absmax"][1:]), "absmax has .* elements"),
        (lambda parts: parts.update({"": parts[""][1:]}), "weight has .* elements"),
        (lambda parts: parts.pop("quant_state.bitsandbytes__nf4"), "has no quant_state.bitsandbytes__nf4 beside it"),
        (lambda parts: parts.update({"quant_state.bitsandbytes__nf4": np.frombuffer(b"{}", np.uint8)}), "quant_state is no description"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_named(tmp_path, change, message):
    write(tmp_path / "m", change=change)
    source = open_model(tmp_path / "m", "auto", EngineOptions())
    with pytest.raises(CheckpointError, match=message):
        packed_model(source.folder, source.plugin, source.dims, Packing(), scheme=source.scheme)


def test_8_bits_have_a_scale_for_each_output(tmp_path):
    layout = 0

    def tensors(rng, inputs, outputs):
        codes = rng.integers(-127, 128, (outputs, inputs)).astype("i1")
        largest = rng.uniform(0.1, 0.5, outputs).astype("f4")
        weight = (codes * (largest / np.float32(127))[:, None]).astype("f4")
        return {"weight": codes, "SCB": largest, "weight_format": np.full((), layout, "u1")}, weight.T

    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    assert Quantized(tmp_path / "m", config, tensors).check() == {"int8"}

    source = open_model(tmp_path / "m", "auto", EngineOptions())
    stored = open_quantized(tmp_path / "m", source.scheme, ()).tensors["model.layers.1.mlp.up_proj.weight"]
    rows = np.empty((5, stored.shape[1]), "f4")
    stored.read_into(rows, "float32", 40)
    np.testing.assert_array_equal(rows, stored.read()[40:45])

    layout = 2
    with pytest.raises(
        CheckpointError, match="q_proj .* weight_format is 2, a layout for a GPU; only rows, 0, are read"
    ):
        Quantized(tmp_path / "o", config, tensors).model()

    def without_scales(rng, inputs, outputs):
        return {"weight": tensors(rng, inputs, outputs)[0]["weight"]}, None

    with pytest.raises(CheckpointError, match="q_proj has weight as int8, but no SCB"):
        Quantized(tmp_path / "n", config, without_scales).model()
