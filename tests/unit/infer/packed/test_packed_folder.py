"""Packed models on disk: what comes back, how little is read, what is noticed."""

import dataclasses
import json

import numpy as np
import pytest
from kit import damage

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.checkpoint.formats import safetensors
from llmctl.errors import CheckpointError, FileError
from llmctl.infer.executors import native
from llmctl.infer.executors.base import Batch
from llmctl.infer.packed import folder as packed_folder
from llmctl.infer.packed.folder import ALIGNMENT, HEADER, WEIGHTS, is_packed, open_packed, save_packed
from llmctl.infer.packed.linear import JoinedLinear, pack, unpack
from llmctl.infer.packed.model import LoraDelta, PackedAdapter
from llmctl.infer.packed.pack import pack_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint folder with experts, its plugin and a packed model with an adapter and virtual tokens."""
    plugin = plugins.load("mixtral")
    dims, folder = tiny_dims(plugin.card), tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(plugin.card.config_from_dims(dims)))
    (folder / "tokenizer.json").write_text("{}")
    rng, planned = np.random.default_rng(3), {}
    for tensor in plugin.card.expand(dims):
        shape = tensor.shape[::-1] if tensor.transpose else tensor.shape
        planned[tensor.torch_name] = safetensors.PlannedTensor(
            shape, "float32", rng.normal(size=shape).astype("f4").tofile
        )
    safetensors.write_file(folder / "model.safetensors", planned)
    change = LoraDelta(np.ones((32, 2), "f4"), np.ones((2, 32), "f4"))
    extra = dict(adapters=[PackedAdapter("one", {(0, "out", 0): change})], prefix=np.ones((2, 2, 3, 2, 8), "f4"))
    return folder, plugin, dataclasses.replace(pack_model(folder, plugin, dims, "int4", 32), **extra)


@pytest.fixture
def packed(checkpoint, tmp_path):
    """The packed folder."""
    folder, plugin, model = checkpoint
    save_packed(model, tmp_path / "packed", folder, plugin)
    return tmp_path / "packed"


def leaves(value, path="model"):
    """Everything in a model by its path."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, row in value.items() for key, leaf in leaves(row, f"{path}.{name}").items()}


def test_what_comes_back_is_what_was_saved(checkpoint, packed):
    expected, found = leaves(checkpoint[2]), leaves(open_packed(packed, verify=True))
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert type(found[path]) is type(value) or isinstance(value, np.ndarray), path
        assert np.array_equal(found[path], value) if isinstance(value, np.ndarray) else found[path] == value, path
    assert is_packed(packed) and not is_packed(checkpoint[0])
    assert sorted(file.name for file in packed.iterdir()) == ["config.json", HEADER, "tokenizer.json", WEIGHTS]


def test_arrays_are_views_of_the_mapped_file(packed):
    model = open_packed(packed)
    arrays = [leaf for leaf in leaves(model).values() if isinstance(leaf, np.ndarray)]
    assert len(arrays) > 50
    for array in arrays:
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        assert isinstance(base, np.memmap) and not array.flags.writeable
        assert array.ctypes.data % ALIGNMENT == 0


def damaged(file, place, content):
    with open(file, "r+b") as stream:
        stream.seek(place)
        stream.write(content)


def test_a_changed_byte_is_found_when_asked_for(packed):
    damaged(packed / WEIGHTS, 5000, bytes([(packed / WEIGHTS).read_bytes()[5000] ^ 1]))
    open_packed(packed)
    with pytest.raises(
        CheckpointError, match=rf"{WEIGHTS} is damaged: array \d+ at byte \d+ has another SHA-256; pack the"
    ):
        open_packed(packed, verify=True)


def test_a_file_of_another_size_is_found_at_once(packed):
    size = (packed / WEIGHTS).stat().st_size
    with open(packed / WEIGHTS, "r+b") as stream:
        stream.truncate(size - 1)
    with pytest.raises(CheckpointError, match=f"has {size - 1} bytes, {HEADER} describes {size}; it is truncated"):
        open_packed(packed)
    (packed / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="is absent"):
        open_packed(packed)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:100],
        lambda text: text.replace('"norm_eps":', '"norm_epz":', 1),
        lambda text: text.replace('"offset":0,', '"offset":64,', 1),
        lambda text: "[1]",
        lambda text: "{}",
        lambda text: "[" * 100_000,
    ],
)
def test_a_damaged_header_is_found_at_once(packed, change):
    text = (packed / HEADER).read_text()
    (packed / HEADER).write_text(change(text))
    assert (packed / HEADER).read_text() != text
    with pytest.raises(CheckpointError, match=f"{HEADER} is damaged or was edited: .*; pack the model again"):
        open_packed(packed)


def test_a_folder_of_another_layout_is_refused(packed, monkeypatch):
    monkeypatch.setattr("llmctl.infer.packed.folder.LAYOUTS", (98, 99))
    with pytest.raises(CheckpointError, match="this llmctl reads format 2 with layout 98 or 99: pack the model again"):
        open_packed(packed)


def test_a_folder_of_the_first_layout_is_read(checkpoint, tmp_path, monkeypatch):
    """It has scales in float32, and an array of token vectors."""
    folder, plugin, model = checkpoint
    embed = model.token_vectors(np.arange(model.graph.vocab))
    scales = model.head.weight.scales.astype(np.float32)
    head = dataclasses.replace(model.head, weight=dataclasses.replace(model.head.weight, scales=scales))
    monkeypatch.setattr("llmctl.infer.packed.folder.LAYOUT", 1)
    save_packed(dataclasses.replace(model, embed=embed, head=head), tmp_path / "old", folder, plugin)
    found = open_packed(tmp_path / "old", verify=True)
    np.testing.assert_array_equal(found.embed, embed)
    np.testing.assert_array_equal(found.head.weight.scales, scales)


def test_parts_come_back(checkpoint, tmp_path):
    folder, plugin, model = checkpoint
    first = model.layers[0]
    whole = unpack(first.qkv.weight)
    weight = JoinedLinear((pack(whole[:, :24], "int4", 32), pack(whole[:, 24:], "int8", 32)))

    def saved(name, changed):
        layers = (dataclasses.replace(first, qkv=dataclasses.replace(first.qkv, weight=changed)), *model.layers[1:])
        save_packed(dataclasses.replace(model, layers=layers), tmp_path / name, folder, plugin)
        return open_packed(tmp_path / name, verify=True).layers[0].qkv.weight

    found = saved("a", weight)
    assert (found.kind, found.inputs, found.outputs) == ("int4+int8", *whole.shape)
    np.testing.assert_array_equal(unpack(found), unpack(weight))
    for name, parts in (("b", ()), ("c", weight.parts[:1]), ("d", (weight.parts[0], pack(whole[:8, 24:], "int8")))):
        with pytest.raises(CheckpointError, match="does not describe a model"):
            saved(name, JoinedLinear(parts))


def test_order_and_factors_come_back(checkpoint, tmp_path):
    folder, plugin, model = checkpoint
    order = np.random.default_rng(0).permutation(model.head.weight.inputs).astype(np.int32)
    factors = np.linspace(1, 2, len(order), dtype=np.float32)
    weight = dataclasses.replace(model.head.weight, order=order, factors=factors)
    save_packed(
        dataclasses.replace(model, head=dataclasses.replace(model.head, weight=weight)), tmp_path / "a", folder, plugin
    )
    found = open_packed(tmp_path / "a").head.weight
    np.testing.assert_array_equal(found.order, order)
    np.testing.assert_array_equal(found.factors, factors)
    wrong = dataclasses.replace(weight, order=np.zeros_like(order))
    save_packed(
        dataclasses.replace(model, head=dataclasses.replace(model.head, weight=wrong)), tmp_path / "b", folder, plugin
    )
    with pytest.raises(CheckpointError, match="head.order is not one of its inputs"):
        open_packed(tmp_path / "b")


def test_a_tied_table_is_stored_once(tmp_path):
    plugin = plugins.load("llama")
    dims, folder = tiny_dims(plugin.card).replace(tied=True), tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(plugin.card.config_from_dims(dims)))
    planned = {
        tensor.torch_name: safetensors.PlannedTensor(
            shape := tensor.shape[::-1] if tensor.transpose else tensor.shape, "float32", np.ones(shape, "f4").tofile
        )
        for tensor in plugin.card.expand(dims)
    }
    safetensors.write_file(folder / "model.safetensors", planned)
    save_packed(pack_model(folder, plugin, dims, "int8"), tmp_path / "packed", folder, plugin)
    found = open_packed(tmp_path / "packed")
    assert np.shares_memory(found.embed.data, found.head.weight.data)
    assert len({row["offset"] for row in json.loads((tmp_path / "packed" / HEADER).read_text())["arrays"]}) == len(
        json.loads((tmp_path / "packed" / HEADER).read_text())["arrays"]
    )


def test_a_folder_without_a_packed_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=f"holds no packed model: it has no {HEADER}"):
        open_packed(tmp_path)


def test_nothing_is_written_over_unless_asked(checkpoint, packed):
    folder, plugin, model = checkpoint
    with pytest.raises(FileError, match="already exists"):
        save_packed(model, packed, folder, plugin)
    save_packed(model, packed, folder, plugin, overwrite=True)
    open_packed(packed, verify=True)


@pytest.mark.robust
def test_damaged_headers_that_are_signed_anew_end_in_a_message(packed):
    """Whoever edits a header can also compute its hash; kernels must not fail on what it says."""
    whole = json.loads((packed / HEADER).read_text())
    del whole["sha256"]

    def place(header):
        noted = packed_folder._digest(header) if isinstance(header, dict) else ""
        header = {**header, "sha256": noted} if isinstance(header, dict) else header
        (packed / HEADER).write_text(json.dumps(header))

    def read():
        model = open_packed(packed, verify=True)
        executor = native.NativeExecutor(model, 8)
        executor.allocate(2)
        executor.run(step())

    place(whole)
    read()
    inputs = (
        (f"seed {seed}", lambda seed=seed: place(damage.json_value(whole, seed)))
        for seed in range(damage.budget(250, 8000))
    )
    damage.try_all("packed.json, signed anew", inputs, read)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header["arrays"][0].update(dtype="O"), r"arrays\[0\].dtype must be '<f4' or"),
        (lambda header: header["arrays"][0].update(shape=[-1]), r"arrays\[0\].shape\[0\] must be at least 0"),
        (lambda header: header["model"]["graph"].update(kv_heads=0), "kv_heads=0, not 1 to"),
        (lambda header: header["model"]["graph"]["experts"].update(top_k=-3), "experts.top_k=-3"),
        (lambda header: header["model"]["graph"].update(window=2**40), "window=1099511627776, not 1 to"),
        (lambda header: header["model"]["graph"].update(ffn=7), r"layers\[0\].up\[0\] is \[32, "),
        (lambda header: header["model"]["layers"][0].update(router=None), r"layers\[0\].router and experts"),
        (lambda header: header["model"]["layers"].pop(), "1 layers, 2 in the graph"),
        (lambda header: header["model"]["embed"].update(array=-1), "array must be at least 0"),
        (lambda header: header.update(bytes="9"), "bytes must be a whole number"),
    ],
)
def test_an_edited_header_is_refused_by_what_it_says(packed, change, message):
    header = json.loads((packed / HEADER).read_text())
    del header["sha256"]
    change(header)
    (packed / HEADER).write_text(json.dumps({**header, "sha256": packed_folder._digest(header)}))
    with pytest.raises(CheckpointError, match=f"{HEADER} does not describe a model .*{message}"):
        open_packed(packed)


def step():
    """A step of two tokens."""
    tokens = np.arange(2, dtype=np.int32)
    return Batch(
        ids_T=tokens, sequence_T=tokens * 0, kv_position_T=tokens, position_T=tokens, second_position_T=None,
        attend_begin_T=tokens * 0, attend_end_T=tokens + 1, block_tables_RM=np.zeros((1, 1), np.int32),
        adapter_R=np.array([-1], np.int32), logits_indices_L=np.array([1], np.int32),
    )  # fmt: skip
