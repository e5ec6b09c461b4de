"""Reading and writing safetensors, with the ``safetensors`` package as the independent twin, and every kind of damage."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from llmctl.card.weight_map import WeightMapping
from llmctl.checkpoint import open_folder, save_weights
from llmctl.checkpoint.formats import tensor_info as tensor_info_module
from llmctl.checkpoint.formats.dtypes import cast, finite, round_bfloat16, widen
from llmctl.checkpoint.formats.safetensors import PlannedTensor, read_header, write_file
from llmctl.errors import CheckpointError

PLAIN = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda n: n != "__metadata__")


def header_file(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path.parent


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@st.composite
def states(draw, dtypes=PLAIN):
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
    return {n: draw(hnp.arrays(draw(st.sampled_from(dtypes)), shapes, elements=None, fill=st.nothing())) for n in names}


@settings(deadline=None, max_examples=60)
@given(states())
def test_what_the_safetensors_package_wrote_is_read_bit_for_bit(state):
    with tempfile.TemporaryDirectory() as folder:
        save_file(state, f"{folder}/model.safetensors")
        weights = open_folder(folder)
        assert set(weights.tensors) == set(state)
        for name, value in state.items():
            read = weights.read(name)
            assert (read.shape, weights.tensors[name].dtype) == (value.shape, value.dtype.name)
            expected = value.astype(np.float32) if value.dtype == np.float16 else value
            assert read.dtype == expected.dtype
            np.testing.assert_array_equal(read, expected)


@settings(deadline=None, max_examples=60)
@given(states(PLAIN[1:]), st.integers(1, 200))
def test_what_is_written_the_safetensors_package_reads_back(state, max_shard_bytes):
    renames = [WeightMapping(f"torch.{name}", name) for name in state]
    with tempfile.TemporaryDirectory() as folder:
        save_weights(folder, state, renames, "float32", max_shard_bytes)
        files = sorted(Path(folder).glob("*.safetensors"))
        read = {name: value for file in files for name, value in load_file(file).items()}
        assert set(read) == {f"torch.{name}" for name in state}
        for name, value in state.items():
            expected = value.astype(np.float32) if value.dtype.kind == "f" else value
            assert read[f"torch.{name}"].dtype == expected.dtype
            np.testing.assert_array_equal(read[f"torch.{name}"], expected)
        assert set(open_folder(folder).tensors) == set(read)


def test_shards_hold_at_most_the_given_bytes_and_the_index_names_every_tensor(tmp_path):
    state = {f"t{i}": np.full((4, 4), i, np.float32) for i in range(7)}
    save_weights(tmp_path, state, [WeightMapping(name, name) for name in state], max_shard_bytes=150)
    files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 7 * 64}
    for name, file in index["weight_map"].items():
        with safetensors.safe_open(tmp_path / file, "np") as shard:
            assert name in shard.keys()  # noqa: SIM118
            assert shard.metadata() == {"format": "pt"}
    assert set(index["weight_map"]) == set(state)


def test_a_tensor_larger_than_a_shard_gets_its_own(tmp_path):
    state = {"a": np.zeros(2, np.float32), "big": np.zeros(100, np.float32), "b": np.zeros(2, np.float32)}
    save_weights(tmp_path, state, [WeightMapping(name, name) for name in state], max_shard_bytes=16)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(width=32)))
def test_bfloat16_rounds_to_nearest_even(values):
    rounded = widen(round_bfloat16(values))
    wide = values.astype(np.float64)
    assert np.array_equal(np.isnan(rounded), np.isnan(values))
    below = widen((values.view(np.uint32) >> 16).astype(np.uint16))
    above = widen(((values.view(np.uint32) >> 16) + 1).astype(np.uint16))
    for value, got, low, high in zip(wide, rounded, below, above, strict=True):
        if not np.isfinite(value) or not np.isfinite(high):
            assert np.isnan(value) or got == value or abs(value) > abs(low)
            continue
        low, high = float(low), float(high)
        nearest = low if abs(value - low) < abs(value - high) else high
        if abs(value - low) == abs(value - high):
            nearest = low if not (round_bfloat16(np.float32([low]))[0] & 1) else high
        assert got == nearest


def test_all_bfloat16_values_survive_a_round_trip_through_float32():
    every = np.arange(1 << 16, dtype=np.uint16)
    number = ~np.isnan(widen(every))
    assert np.array_equal(round_bfloat16(widen(every))[number], every[number])
    assert np.isnan(widen(round_bfloat16(widen(every[~number])))).all()


def test_finite_bfloat16_values_are_those_that_float32_has_finite():
    every = np.arange(1 << 16, dtype=np.uint16)
    assert np.array_equal(finite(every, "bfloat16"), np.isfinite(widen(every)))
    assert finite(np.float16([1, np.inf, np.nan]), "float16").tolist() == [True, False, False]


def test_values_that_do_not_fit_the_dtype_are_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="big: 70000 does not fit into float16; save with"):
        save_weights(tmp_path, {"big": np.float32([1, 70000])}, [WeightMapping("big", "big")], dtype="float16")
    infinite = cast(np.float32([np.inf, 1]), "float32", "float16")
    assert np.isinf(infinite[0])


def test_unknown_dtypes_cannot_be_saved(tmp_path):
    with pytest.raises(CheckpointError, match="float32, float16, bfloat16"):
        save_weights(tmp_path, {}, [], dtype="int8")
    with pytest.raises(CheckpointError, match="complex64"):
        save_weights(tmp_path, {"a": np.zeros(2, np.complex64)}, [WeightMapping("a", "a")])


@pytest.mark.parametrize("chunk", [1, 8, 64])
def test_reading_in_chunks_gives_the_same_tensor(tmp_path, monkeypatch, chunk):
    value = np.arange(7 * 6, dtype=np.float32).reshape(7, 6)
    save_file({"a": value}, tmp_path / "model.safetensors")
    monkeypatch.setattr(tensor_info_module, "CHUNK_BYTES", chunk)
    np.testing.assert_array_equal(open_folder(tmp_path).read("a"), value)


GOOD = {"a": entry(0, 8, [2]), "b": entry(8, 16, [2])}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (GOOD, bytes(12), "truncated: its header describes 4 bytes more"),
        (GOOD, bytes(20), "4 bytes after its last tensor"),
        ({**GOOD, "b": entry(4, 12, [2])}, bytes(12), "b begins at byte 4 of the data and overlaps"),
        ({**GOOD, "b": entry(12, 20, [2])}, bytes(20), "leaves a gap"),
        ({"a": entry(0, 12, [2])}, bytes(12), "a needs 8 bytes, its offsets give 12"),
        ({"a": entry(0, 8, [2], "F4")}, bytes(8), "dtype 'F4'; supported: F64"),
        ({"a": entry(0, 8, [-2])}, bytes(8), "entry for a is not valid"),
        ({"a": entry(0, 8, "2")}, bytes(8), "entry for a is not valid"),
        ({"a": entry(0, 8.0, [2])}, bytes(8), "entry for a is not valid"),
        ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), "entry for a is not valid"),
        ({"a": 1}, bytes(8), "entry for a is not valid"),
        ({"a": entry(0, 8, [2], [1])}, bytes(8), "entry for a is not valid"),
        (b'{"a": 1', b"", "header is not valid"),
        (b"[1]", b"", "not an object"),
        (b"\xff\xfe", b"", "header is not valid"),
        (b"[" * 100_000, b"", "header is not valid"),
        (b'{"a": {}, "a": {}}', b"", "'a' is in it twice"),
        (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), bytes(16), "header is not valid: Unexpected UTF-8 BOM"),
        (json.dumps(GOOD).encode("utf-16"), bytes(16), "header is not valid: 'utf-8' codec"),
        (json.dumps(GOOD).encode("utf-16-le"), bytes(16), "header is not valid"),
        (json.dumps(GOOD).encode("utf-32"), bytes(16), "header is not valid: 'utf-8' codec"),
        ({"__metadata__": {"step": 1}, **GOOD}, bytes(16), "__metadata__ must be an object of texts"),
        ({"__metadata__": ["pt"], **GOOD}, bytes(16), "__metadata__ must be an object of texts"),
        ({"__metadata__": "pt", **GOOD}, bytes(16), "__metadata__ must be an object of texts"),
        ({"a": {**entry(0, 8, [2]), "scale": float("nan")}}, bytes(8), "NaN is not JSON"),
        (b'{"\\ud800": {}}', b"", "surrogates not allowed"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-0, 8]}}', bytes(8), "entry for a is not valid"),
        ({"a": entry(0, 0, [0, 1 << 64])}, b"", "entry for a is not valid"),
    ],
)
def test_damaged_files_are_refused_with_file_and_cause(tmp_path, header, data, message):
    folder = header_file(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_folder(folder)
    assert str(tmp_path / "model.safetensors") in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 65) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def damaged_headers(draw):
    """Bytes of a header: one that is right, then fields, keys, encoding or bytes of it changed."""
    header = {"__metadata__": {"format": "pt"}, "a": entry(0, 8, [2]), "b": entry(8, 16, [1, 2])}
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(["__metadata__", "a", "b", "c"]))
        inside = draw(st.sampled_from(["dtype", "shape", "data_offsets", "format", "other"]))
        if draw(st.booleans()) and isinstance(header.get(name), dict):
            header[name][inside] = draw(VALUES | st.lists(st.integers(0, 16), max_size=3))
        else:
            header[name] = draw(VALUES)
    text = json.dumps(header, ensure_ascii=draw(st.booleans()))
    encoding = draw(st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"]))
    content = bytearray(text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass"))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(content) - 1))
        content[place : place + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(content)


@settings(deadline=None, max_examples=600)
@given(damaged_headers())
def test_no_header_is_read_that_the_safetensors_package_refuses(content):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        header_file(file, content, bytes(16))
        try:
            ours = read_header(file)
        except CheckpointError:
            return
        with safetensors.safe_open(file, "np") as theirs:
            assert sorted(theirs.keys()) == sorted(ours)
            for name, info in ours.items():
                assert tuple(theirs.get_slice(name).get_shape()) == info.shape


@pytest.mark.parametrize("length", [0, 5, 8, 20])
def test_every_truncation_inside_the_header_is_refused(tmp_path, length):
    file = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, file)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="truncated inside its header"):
        open_folder(tmp_path)


def test_a_file_cut_after_opening_is_noticed(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(300, np.float32)}, file)
    weights = open_folder(tmp_path)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="ends inside a tensor"):
        weights.read("a")


def sharded(tmp_path):
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": np.ones(2, np.float32)}, tmp_path / "model-00002-of-00002.safetensors")
    return {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


def write_index(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return tmp_path


def test_shards_are_read_through_their_index(tmp_path):
    weights = open_folder(write_index(tmp_path, {"metadata": {}, "weight_map": sharded(tmp_path)}))
    assert weights.read("b").tolist() == [1, 1]
    assert weights.nbytes == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": "model-00003-of-00002.safetensors"}, "names files that are missing, 1 in all: model-00003"),
        ({"a": "model-00002-of-00002.safetensors"}, "says that model-00002.* holds a, but model-00001.* does|no file"),
        ({"c": "model-00002-of-00002.safetensors"}, "holds c, but no file of the folder does"),
        ({"a": "../model.safetensors"}, "shards must be in the folder of their index"),
        ({"a": 3}, "shards must be in the folder of their index"),
    ],
)
def test_an_index_that_contradicts_the_files_is_refused(tmp_path, change, message):
    write_index(tmp_path, {"weight_map": {**sharded(tmp_path), **change}})
    with pytest.raises(CheckpointError, match=message):
        open_folder(tmp_path)


def test_a_tensor_that_the_index_does_not_list_is_read_from_its_shard(tmp_path):
    """As transformers does, which reads all of a file: nothing of the model is left out without a word."""
    files = sharded(tmp_path)
    save_file({"b": np.ones(2, np.float32), "c": np.full(2, 3, np.float32)}, tmp_path / files["b"])
    assert open_folder(write_index(tmp_path, {"weight_map": files})).read("c").tolist() == [3, 3]


def test_a_tensor_in_another_shard_than_the_index_says_is_refused(tmp_path):
    files = sharded(tmp_path)
    write_index(tmp_path, {"weight_map": {"a": files["b"], "b": files["a"]}})
    with pytest.raises(CheckpointError, match="says that model-00002-of-00002.safetensors holds a, but model-00001"):
        open_folder(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    files = sharded(tmp_path)
    save_file({"a": np.zeros(2, np.float32), "b": np.ones(2, np.float32)}, tmp_path / files["b"])
    write_index(tmp_path, {"weight_map": files})
    with pytest.raises(CheckpointError, match="both hold the tensor a"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": []}}']
)
def test_an_invalid_index_is_refused(tmp_path, content):
    sharded(tmp_path)
    with pytest.raises(CheckpointError, match=r"index\.json (is not a weight index|lists no tensors)"):
        open_folder(write_index(tmp_path, content))


def test_shards_without_an_index_are_refused(tmp_path):
    sharded(tmp_path)
    with pytest.raises(CheckpointError, match="holds 2 weight files .* but none with a known name"):
        open_folder(tmp_path)


def test_one_file_of_another_name_may_be_renamed(tmp_path):
    """As AutoGPTQ wrote."""
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "gptq_model-4bit-128g.safetensors")
    with pytest.raises(
        CheckpointError, match="holds 1 weight file .*; if that is the whole model, rename it to model.safetensors"
    ):
        open_folder(tmp_path)


def test_folders_without_weights_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights: expected model.safetensors"):
        open_folder(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        open_folder(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="give the folder that holds it"):
        open_folder(tmp_path / "file")


def test_safetensors_are_preferred_to_bin(tmp_path):
    save_file({"a": np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    assert open_folder(tmp_path).read("a").tolist() == [1]


def test_an_unknown_tensor_is_named(tmp_path):
    save_file({"a": np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="has no tensor b"):
        open_folder(tmp_path).read("b")


def test_paddlenlp_writes_bfloat16_as_16_bit_integers_and_reads_back_what_is_written_for_it(tmp_path):
    bits = round_bfloat16(np.float32([[1.5, -2.0], [3e-3, 0.0]]))
    save_file({"a": bits}, tmp_path / "model.safetensors", metadata={"format": "np"})
    found = open_folder(tmp_path)
    assert found.tensors["a"].dtype == "bfloat16"
    np.testing.assert_array_equal(found.read("a"), widen(bits))
    planned = {"a": PlannedTensor((2, 2), "bfloat16", lambda stream: stream.write(bits.tobytes()))}
    write_file(tmp_path / "again.safetensors", planned, form="np")
    with safetensors.safe_open(tmp_path / "again.safetensors", "np") as file:
        assert file.metadata() == {"format": "np"} and np.array_equal(file.get_tensor("a"), bits)
