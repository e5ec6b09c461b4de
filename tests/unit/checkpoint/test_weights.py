"""Weights from a folder into a paddle layer and back: complete, bit for bit, or one error that lists everything."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmctl.card.weight_map import TensorSlice, WeightMapping
from llmctl.checkpoint import load_weights, open_folder, save_weights
from llmctl.checkpoint.formats import tensor_info as tensor_info_module
from llmctl.checkpoint.formats.dtypes import round_bfloat16
from llmctl.checkpoint.load import check_weights
from llmctl.errors import CheckpointError

paddle = pytest.importorskip("paddle")

SHAPES = {"embed": [7, 4], "linear": [4, 6], "q": [4, 2], "k": [4, 2], "v": [4, 2], "norm": [4]}
RENAMES = [
    WeightMapping("model.embed", "embed"),
    WeightMapping("model.linear", "linear", transpose=True),
    WeightMapping("model.qkv", "q", transpose=True, src_slice=TensorSlice(0, 1, 3)),
    WeightMapping("model.qkv", "k", transpose=True, src_slice=TensorSlice(1, 2, 3)),
    WeightMapping("model.qkv", "v", transpose=True, src_slice=TensorSlice(2, 3, 3)),
    WeightMapping("model.norm", "norm"),
]


class Toy(paddle.nn.Layer):
    def __init__(self, dtype="float32", shapes=SHAPES):
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, self.create_parameter(shape, dtype=dtype))


def source_state(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"model.embed": (7, 4), "model.linear": (6, 4), "model.qkv": (6, 4), "model.norm": (4,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def folder_of(tmp_path, state):
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("chunk", [16, 1 << 20])
def test_tensors_are_transposed_and_cut_into_parts(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(tensor_info_module, "CHUNK_BYTES", chunk)
    source, layer = source_state(), Toy()
    assert load_weights(folder_of(tmp_path, source), layer, RENAMES) == []
    np.testing.assert_array_equal(layer.embed.numpy(), source["model.embed"])
    np.testing.assert_array_equal(layer.linear.numpy(), source["model.linear"].T)
    for i, name in enumerate("qkv"):
        np.testing.assert_array_equal(getattr(layer, name).numpy(), source["model.qkv"][2 * i : 2 * i + 2].T)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("max_shard_bytes", [1, 10**9])
def test_saving_is_the_inverse_of_loading(tmp_path, dtype, max_shard_bytes):
    source, layer = source_state(), Toy()
    load_weights(folder_of(tmp_path, source), layer, RENAMES)
    (tmp_path / "out").mkdir()
    save_weights(tmp_path / "out", layer, RENAMES, dtype, max_shard_bytes)
    weights = open_folder(tmp_path / "out")
    assert {info.dtype for info in weights.tensors.values()} == {dtype}
    for name, value in source.items():
        if dtype == "bfloat16":
            expected = (round_bfloat16(value).astype(np.uint32) << 16).view(np.float32)
        else:
            expected = value.astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(weights.read(name), expected)
    again = Toy()
    load_weights(tmp_path / "out", again, RENAMES)
    (tmp_path / "twice").mkdir()
    save_weights(tmp_path / "twice", again, RENAMES, dtype, max_shard_bytes)
    for file in (tmp_path / "out").iterdir():
        assert (tmp_path / "twice" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_layer_of_another_dtype_gets_cast_values(tmp_path, dtype):
    source, layer = source_state(), Toy()
    layer.to(dtype=dtype)
    load_weights(folder_of(tmp_path, source), layer, RENAMES)
    got = layer.embed.astype("float64").numpy()
    np.testing.assert_allclose(
        got, source["model.embed"], rtol={"float16": 2**-11, "bfloat16": 2**-8, "float64": 0}[dtype]
    )
    (tmp_path / "out").mkdir()
    save_weights(tmp_path / "out", layer, RENAMES)
    np.testing.assert_array_equal(open_folder(tmp_path / "out").read("model.embed"), got.astype(np.float32))


def test_one_error_lists_all_that_does_not_fit_and_nothing_is_loaded(tmp_path):
    source, layer = source_state(), Toy()
    before = layer.embed.numpy().copy()
    source["model.linear"] = source["model.linear"].T.copy()
    source["model.qkv"] = np.zeros((6, 4), np.int32)
    source["extra.one"] = source.pop("model.norm")
    source.update({f"extra.{i}": np.zeros(1, np.float32) for i in range(20)})
    with pytest.raises(CheckpointError) as caught:
        load_weights(folder_of(tmp_path, source), layer, RENAMES)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"the weights in {tmp_path} do not fit the model:"
    assert lines[1] == "  1 tensor missing: model.norm"
    assert lines[2].startswith("  21 tensors unexpected: extra.") and lines[2].endswith("; and 11 more")
    assert lines[3] == "  1 tensor with another shape: model.linear is [4, 6], expected [6, 4]"
    assert lines[4] == "  1 tensor with another data type: model.qkv is int32, expected float32"
    np.testing.assert_array_equal(layer.embed.numpy(), before)


def test_a_packed_tensor_must_hold_all_its_parts(tmp_path):
    source = source_state() | {"model.qkv": np.zeros((7, 4), np.float32)}
    with pytest.raises(CheckpointError, match=r"model.qkv is \[7, 4\], expected \[6, 4\]"):
        load_weights(folder_of(tmp_path, source), Toy(), RENAMES)


def test_allowed_missing_tensors_keep_their_initial_values_and_are_reported(tmp_path):
    source, layer = source_state(), Toy()
    del source["model.qkv"]
    before = layer.q.numpy().copy()
    assert load_weights(folder_of(tmp_path, source), layer, RENAMES, ["model.qkv", "model.norm"]) == ["q", "k", "v"]
    np.testing.assert_array_equal(layer.q.numpy(), before)
    with pytest.raises(CheckpointError, match="not in the weight map of the model: model.qvk"):
        load_weights(tmp_path, layer, RENAMES, ["model.qkv", "model.qvk"])


def test_rotary_tables_and_what_the_card_ignores_are_passed_over(tmp_path):
    extra = {
        "model.layers.0.rotary_emb.inv_freq": np.ones(2, np.float32),
        "h.0.attn.masked_bias": np.ones(1, np.float32),
    }
    folder_of(tmp_path, source_state() | extra)
    with pytest.raises(CheckpointError, match="1 tensor unexpected: h.0.attn.masked_bias"):
        load_weights(tmp_path, Toy(), RENAMES)
    assert load_weights(tmp_path, Toy(), RENAMES, ignored=["h.*.masked_bias"]) == []


def test_a_repeated_head_is_accepted_only_if_it_is_the_embedding(tmp_path):
    source = source_state()
    assert load_weights(folder_of(tmp_path, source | {"lm_head.weight": source["model.embed"]}), Toy(), RENAMES) == []
    other = source["model.embed"].copy()
    other[-1, -1] += 1
    for head in (other, source["model.embed"].astype(np.float16), np.zeros((7, 5), np.float32)):
        with pytest.raises(CheckpointError, match=r"unexpected: lm_head.weight \(.*the two differ"):
            load_weights(folder_of(tmp_path, source | {"lm_head.weight": head}), Toy(), RENAMES)


def test_renames_must_cover_the_layer(tmp_path):
    folder = folder_of(tmp_path, source_state())
    for renames in (RENAMES[:-1], [*RENAMES, RENAMES[0]], [*RENAMES, WeightMapping("x", "y")]):
        with pytest.raises(ValueError, match="do not cover"):
            load_weights(folder, Toy(), renames)


def test_a_folder_is_checked_without_a_layer(tmp_path):
    expected = {name: np.empty(shape, np.float32) for name, shape in SHAPES.items()}
    folder = open_folder(folder_of(tmp_path, source_state()))
    check_weights(folder, expected, RENAMES)
    with pytest.raises(CheckpointError, match="norm"):
        check_weights(folder, expected | {"norm": np.empty(5, np.float32)}, RENAMES)


def test_incomplete_parts_cannot_be_saved(tmp_path):
    with pytest.raises(CheckpointError, match="model.qkv cannot be written: slices of it are missing"):
        save_weights(tmp_path, Toy(), [rename for rename in RENAMES if rename.target != "k"])
    with pytest.raises(CheckpointError, match="model.embed cannot be written: embed is missing"):
        save_weights(tmp_path, {}, RENAMES)


def test_integer_tensors_keep_their_dtype(tmp_path):
    state = {"ids": np.arange(4), "scale": np.float32([0.5])}
    save_weights(tmp_path, state, [WeightMapping(name, name) for name in state], "bfloat16")
    assert {name: info.dtype for name, info in open_folder(tmp_path).tensors.items()} == {
        "ids": "int64",
        "scale": "bfloat16",
    }


@pytest.mark.assets
@pytest.mark.parametrize("case", ["llama_bf16", "llama_gqa_tied", "llama_headdim_attnbias", "llama_rope_llama3"])
def test_a_checkpoint_of_transformers_is_written_back_bit_for_bit(assets, tmp_path, case):
    weights = open_folder(assets / "goldens" / case)
    dtype = next(iter(weights.tensors.values())).dtype
    renames = [WeightMapping(name, name, transpose=len(info.shape) == 2) for name, info in weights.tensors.items()]
    shapes = {name: info.shape for name, info in weights.tensors.items()}
    layer = Toy(shapes={})
    for name, shape in shapes.items():
        layer.add_parameter(name.replace(".", "|"), layer.create_parameter(list(shape)[::-1]))
    renames = [WeightMapping(rename.source, rename.target.replace(".", "|"), rename.transpose) for rename in renames]
    load_weights(weights, layer, renames)
    save_weights(tmp_path, layer, renames, dtype)
    written = open_folder(tmp_path)
    assert set(written.tensors) == set(weights.tensors)
    for name, info in weights.tensors.items():
        assert (written.tensors[name].dtype, written.tensors[name].shape) == (info.dtype, info.shape)
        np.testing.assert_array_equal(written.read(name), weights.read(name))


def test_float64_weights_survive_exactly(tmp_path):
    state = {"a": np.random.default_rng(0).normal(size=(5, 3))}
    save_weights(tmp_path, state, [WeightMapping("a", "a", transpose=True)], "float64")
    np.testing.assert_array_equal(open_folder(tmp_path).read("a"), state["a"].T)
