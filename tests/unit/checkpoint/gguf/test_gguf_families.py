"""Families whose tensors GGUF arranges otherwise, by llama.cpp's names and orders: values, codes and configuration."""

import gguf
import numpy as np
import pytest
from kit.gguf_models import Model, mixed

from llmctl.checkpoint.convert import open_source
from llmctl.checkpoint.gguf.write import write_model
from llmctl.checkpoint.hf_config import read_config
from llmctl.checkpoint.locate import locate
from llmctl.errors import UnsupportedError
from llmctl.infer.loader import Packing, packed_model
from llmctl.infer.model_source import open_model
from llmctl.infer.options import EngineOptions
from llmctl.infer.packed.linear import unpack
from llmctl.plugins import resolve

SIZES = {"hidden": 64, "heads": 4, "vocab": 96}
FAMILIES = {
    "baichuan": ("baichuan", {"kv_heads": 4, "head_dim": 16, "ffn": 96}),
    "bloom": ("bloom", {}),
    "gpt3": ("gpt2", {"ffn": 96}),
    "qwen": ("qwen", {"double_ffn": 192, "trained": 2048, "dynamic_ntk": False, "log_n": False}),
    "qwen2_moe": ("qwen2moe", {"expert_ffn": 32, "shared_ffn": 96, "experts": 3, "top_k": 2}),
    "chatglm2": ("chatglm", {"kv_heads": 2, "head_dim": 16, "ffn": 96}),
}
"""Family -> its architecture and sizes of a small model."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def state_of(source):
    state = open_source(source.folder, source.plugin, source.dims).state
    return {name: state[name].numpy() for name in state}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_files_have_the_values_and_the_configuration_of_the_folder(tmp_path, family, kind):
    architecture, sizes = FAMILIES[family]
    model = Model(family, **{**SIZES, **sizes})
    found = open_model(model.gguf(tmp_path / "m.gguf", architecture, kind), "auto", EngineOptions())
    assert found.plugin.card.name == family
    assert found.dims.replace(init_std=None) == model.dims.replace(init_std=None)
    wanted = state_of(open_model(model.folder(tmp_path / "hf"), "auto", EngineOptions()))
    for name, value in state_of(found).items():
        exact = kind == "F32" or value.ndim == 1 or value.dtype == np.float32
        np.testing.assert_array_equal(
            value.astype("f4"), wanted[name] if exact else wanted[name].astype("f2"), err_msg=name
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_codes_are_those_of_the_arranged_rows(tmp_path, family):
    """Rounding is by rows of 32 inputs, so the order of outputs changes nothing."""
    kind = "Q4_0"
    architecture, sizes = FAMILIES[family]
    model = Model(family, **{**SIZES, **sizes})
    found = open_model(model.gguf(tmp_path / "m.gguf", architecture, kind), "auto", EngineOptions())
    of = gguf.GGMLQuantizationType[kind]
    wanted = state_of(open_model(model.folder(tmp_path / "hf"), "auto", EngineOptions()))
    tensors = {tensor.name: tensor for tensor in model.plugin.card.expand(model.dims)}
    for name, value in state_of(found).items():
        tensor, exact = tensors[name], wanted[name]
        if value.ndim == 1 or tensor.kind == "router":
            np.testing.assert_array_equal(value, exact, err_msg=name)
            continue
        rows = exact if tensor.kind == "embed" else np.ascontiguousarray(exact.T)
        rounded = gguf.dequantize(gguf.quantize(rows, of), of)
        np.testing.assert_array_equal(value if tensor.kind == "embed" else value.T, rounded, err_msg=name)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen2_moe"])
@pytest.mark.parametrize("kind", ["Q8_0"])
def test_the_fused_engine_packs_the_codes(tmp_path, family, kind):
    architecture, sizes = FAMILIES[family]
    model = Model(family, **{**SIZES, **sizes})
    source = open_model(model.gguf(tmp_path / "m.gguf", architecture, kind), "auto", EngineOptions())
    packed = packed_model(source.folder, source.plugin, source.dims, Packing(), scheme=source.scheme)
    by_slot = {}
    for tensor in model.plugin.card.expand(model.dims):
        by_slot.setdefault((tensor.layer, tensor.slot), tensor.name)
    state = state_of(source)
    for index, layer in enumerate(packed.layers):
        for linear, slot in ((layer.out, "out"), (layer.down[0], "ffn2")):
            assert linear.weight.kind == ("int4" if kind == "Q4_0" else "int8") and linear.weight.group == 32
            np.testing.assert_allclose(unpack(linear.weight), state[by_slot[index, slot]], rtol=0, atol=1e-7)
        assert layer.qkv.weight.kind == ("int4" if kind == "Q4_0" else "int8")


@pytest.mark.parametrize("kind", ["Q8_0", "F16"])
def test_parts_of_a_packed_projection_may_have_different_types(tmp_path, kind):
    """As llama.cpp mixes them in Q4_K_M: values with more bits than queries and keys."""
    model = Model("baichuan", **{**SIZES, **FAMILIES["baichuan"][1]})
    one, other = (model.gguf(tmp_path / f"{name}.gguf", "baichuan", name) for name in ("Q4_0", kind))
    source = open_model(mixed(tmp_path / "mixed.gguf", one, other, "attn_v"), "auto", EngineOptions())
    packed = packed_model(source.folder, source.plugin, source.dims, Packing(), scheme=source.scheme)
    parts = [state_of(open_model(file, "auto", EngineOptions())) for file in (one, one, other)]
    wanted = [
        state[f"baichuan.layers.0.self_attn.{part}_proj.weight"] for part, state in zip("qkv", parts, strict=True)
    ]
    np.testing.assert_array_equal(state_of(source)["baichuan.layers.0.self_attn.v_proj.weight"], wanted[2])
    atol = 1e-7 if kind == "Q8_0" else 2e-3  # Floats beside codes are rounded to 8 bits.
    np.testing.assert_allclose(unpack(packed.layers[0].qkv.weight), np.concatenate(wanted, axis=1), rtol=0, atol=atol)


@pytest.mark.parametrize("layers, position", [(2, "rope"), (40, "alibi")])
def test_baichuan_has_alibi_in_the_depth_of_its_larger_model(tmp_path, layers, position):
    sizes = {"hidden": 16, "heads": 2, "kv_heads": 2, "head_dim": 8, "ffn": 16, "vocab": 8}
    path = Model("baichuan", layers=layers, **sizes).gguf(tmp_path / "m.gguf", "baichuan")
    config = read_config(locate(path))
    assert resolve("auto", config, "").card.dims_from_config(config).position == position


def test_files_of_early_conversions_do_not_state_the_widths_of_experts(tmp_path):
    model = Model("qwen2_moe", **{**SIZES, "ffn": 96, "expert_ffn": 48, "shared_ffn": 96, "experts": 3, "top_k": 2})
    path = model.gguf(tmp_path / "m.gguf", "qwen2moe")
    raw = path.read_bytes()
    for key in (b"qwen2moe.expert_feed_forward_length", b"qwen2moe.expert_shared_feed_forward_length"):
        raw = raw.replace(key, b"general." + b"x" * (len(key) - 8))
    path.write_bytes(raw)
    dims = open_model(path, "auto", EngineOptions()).dims
    assert (dims.expert_ffn, dims.shared_ffn) == (48, 96)


def test_families_that_are_only_read_are_not_written(tmp_path):
    model = Model("bloom", **SIZES)
    folder = model.folder(tmp_path / "hf")
    state = open_source(folder, model.plugin, model.dims).state
    with pytest.raises(UnsupportedError, match="models of the family bloom are read from GGUF, and not written"):
        write_model(tmp_path / "m.gguf", folder, model.plugin.card, model.dims, state)
