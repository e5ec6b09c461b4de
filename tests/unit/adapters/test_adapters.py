"""Adapter folders that do not fit, in both formats; targets; the base that an adapter belongs to."""

import json
import pickle
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file, save_file

from llmctl import plugins
from llmctl.adapters import base_model as bases
from llmctl.adapters import folder as folders
from llmctl.adapters import targets
from llmctl.adapters.adapter import Adapter, LoraWeights
from llmctl.adapters.folder import open_adapter
from llmctl.adapters.merge import merge
from llmctl.card.tiny import tiny_dims
from llmctl.checkpoint import convert
from llmctl.checkpoint.formats import safetensors
from llmctl.errors import CheckpointError, ConfigError, FileError
from llmctl.testing.tiny import write_model

CASE = Path(__file__).resolve().parents[2] / "goldens" / "adapters" / "llama_plain"


@pytest.fixture(scope="module")
def llama():
    plugin = plugins.load("llama")
    return plugin, plugin.card.dims_from_config(json.loads((CASE / "config.json").read_text()))


@pytest.fixture
def adapter(tmp_path):
    """A copy of a model with an adapter."""
    shutil.copytree(CASE, tmp_path / "model")
    return tmp_path / "model" / "adapter"


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refused(adapter, *parts, error=CheckpointError, **options):
    with pytest.raises(error) as caught:
        open_adapter(adapter, **options)
    for part in parts:
        assert part in str(caught.value), caught.value


def test_targets_are_ends_of_names_or_all(llama):
    plugin, dims = llama
    assert len(targets.choose(plugin.card, dims, ["all"])) == 14
    assert set(targets.choose(plugin.card, dims, ["layers.1.self_attn.v_proj", "mlp.up_proj"])) == {
        "llama.layers.0.mlp.up_proj", "llama.layers.1.self_attn.v_proj", "llama.layers.1.mlp.up_proj",
    }  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"method.targets: 'q_poj' matches no linear layer of llama; did you mean q_proj\?"
    ):
        targets.choose(plugin.card, dims, ["q_poj"])
    with pytest.raises(ConfigError, match="'lm_head' matches no linear layer"):
        targets.choose(plugin.card, dims, ["lm_head"])


def test_missing_unexpected_and_misshapen_tensors_are_listed(adapter):
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    first, second, *_ = sorted(tensors)
    tensors["surprise"] = tensors.pop(first)
    tensors[second] = np.zeros((3, 3), np.float32)
    save_file(tensors, file)
    refused(adapter, f"missing: {first}", "unexpected: surprise", f"wrong shape: {second} is [3, 3]")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save names lm_head, of which the file has no tensor"),
        ({"modules_to_save": "lm_head"}, "modules_to_save='lm_head' must be a list of names"),
        ({"trainable_token_indices": {"lm_head": [-1]}}, "must be a list of token ids, or such lists by the name"),
        ({"peft_type": "LOHA"}, "peft_type='LOHA'"),
        ({"a_later_idea": True}, "a_later_idea=True is not supported"),
        ({"init_lora_weights": "pissa"}, "changes the base"),
        ({"r": 0}, "r=0 must be an integer above 0"),
        ({"target_modules": ["c_attn"]}, "matches no linear layer of llama"),
        ({"r": 2}, "expected [2, 16]"),
        ({"lora_alpha": "16"}, "lora_alpha='16' must be a number"),
        ({"lora_dropout": None}, "lora_dropout=None must be a number"),
        ({"target_modules": "("}, "target_modules='(' must be a list of names or a regular expression"),
        ({"target_modules": [1]}, "target_modules=[1] must be a list of names or a regular expression"),
        ({"exclude_modules": True}, "exclude_modules=True must be a list of names or a regular expression"),
        ({"layers_to_transform": 1.5}, "layers_to_transform=1.5 must be an integer or a list of them"),
        ({"rank_pattern": {"q_proj": 2.5}}, "rank_pattern={'q_proj': 2.5} must be integers above 0"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern={'(': 2} must be integers above 0 by regular expression"),
        ({"alpha_pattern": {"q_proj": "1"}}, "alpha_pattern={'q_proj': '1'} must be numbers by regular expression"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern=['q_proj'] must be numbers by regular expression"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(adapter, changes, part):
    edit(adapter / "adapter_config.json", **changes)
    refused(adapter, part)


@pytest.mark.parametrize(
    ("record", "key"),
    [
        ({"blocks": 5}, "blocks"),
        ({"blocks": {"model.layers.0.self_attn.W_pack": {"q_proj": "4"}}}, "blocks"),
        ({"base": "path/to/model"}, "base"),
        ({"ignored_config_keys": "rope_scaling"}, "ignored_config_keys"),
    ],
)
def test_a_damaged_record_is_refused_and_not_read_as_another_one(adapter, record, key):
    (adapter / "llmctl.json").write_text(json.dumps(record))
    refused(adapter, "llmctl.json is damaged", key, "restore the file, or delete it", error=FileError)


def test_layers_may_be_chosen_by_number(adapter):
    edit(adapter / "adapter_config.json", layers_to_transform=[1])
    file = adapter / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if ".layers.1." in name}, file)
    assert {path.split(".")[2] for path in open_adapter(adapter).adapter.layers} == {"1"}


def with_record(adapter, llama):
    plugin, dims = llama
    read = folders.read(adapter, plugin, dims)
    record = {"base": bases.record(adapter.parent, plugin, dims)}
    made = adapter.parent.parent / "ours"
    made.mkdir()
    folders.write(made, Adapter(read.layers, base=str(adapter.parent), record=record), plugin, dims)
    return made


def test_a_base_with_other_weights_is_refused_unless_allowed(adapter, llama, tmp_path):
    made = with_record(adapter, llama)
    other = tmp_path / "other"
    shutil.copytree(CASE, other)
    renamed = convert.open_source(other, *llama)
    assert open_adapter(made).base == adapter.parent
    convert.convert(renamed, tmp_path / "native", "native", dtype="float32")
    assert open_adapter(made, tmp_path / "native").base == tmp_path / "native"
    info = safetensors.read_header(other / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    with open(other / "model.safetensors", "r+b") as stream:
        stream.seek(info.offset)
        stream.write(b"\x00\x41")
    refused(made, "other weights", "--allow-other-base", base=other)
    assert open_adapter(made, other, allow_other=True).base == other


def test_a_base_of_other_shapes_is_refused_whatever_is_allowed(adapter, llama, tmp_path):
    made = with_record(adapter, llama)
    shutil.copytree(CASE.parent / "qwen2_rslora", tmp_path / "qwen")
    refused(made, "was trained on a llama model", base=tmp_path / "qwen", allow_other=True)
    narrow = tmp_path / "narrow"
    shutil.copytree(CASE, narrow)
    edit(narrow / "config.json", intermediate_size=20)
    refused(made, "does not fit the base", "mlp", base=narrow, allow_other=True)


def test_a_base_that_is_not_there_is_named(adapter):
    edit(adapter / "adapter_config.json", base_model_name_or_path="someone/somewhere")
    refused(adapter, "the base model someone/somewhere of this adapter is missing", "--base")
    edit(adapter / "adapter_config.json", base_model_name_or_path=None)
    refused(adapter, "does not record its base model", "--base")


def test_paddlenlp_reads_and_writes_the_same_adapter(adapter, llama, tmp_path):
    plugin, dims = llama
    ours = folders.read(adapter, plugin, dims)
    target = tmp_path / "nlp"
    target.mkdir()
    folders.write(target, ours, plugin, dims, layout="native")
    arrays = paddle.load(str(target / "lora_model_state.pdparams"), return_numpy=True)
    path = "llama.layers.0.self_attn.q_proj"
    assert arrays[path + ".lora_A"].shape == (16, 4) and arrays[path + ".lora_B"].shape == (4, 16)
    theirs = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    np.testing.assert_array_equal(arrays[path + ".lora_A"], theirs[name].T)
    config = json.loads((target / "lora_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rslora"]) == (4, 6, False)
    same_parts(open_adapter(target, adapter.parent).adapter, ours)
    # With unified checkpoints PaddleNLP writes safetensors with an index.
    (target / "lora_model_state.pdparams").unlink()
    save_file(arrays, target / "peft_model-00001-of-00001.safetensors", metadata={"format": "np"})
    index = {"weight_map": dict.fromkeys(arrays, "peft_model-00001-of-00001.safetensors")}
    (target / "peft_model.safetensors.index.json").write_text(json.dumps(index))
    same_parts(open_adapter(target, adapter.parent).adapter, ours)


def same_parts(back, ours):
    assert back.layers.keys() == ours.layers.keys()
    for path, part in ours.layers.items():
        np.testing.assert_array_equal(back.layers[path].a, part.a)
        np.testing.assert_array_equal(back.layers[path].b, part.b)
        assert back.layers[path].scale == part.scale


@pytest.mark.parametrize(
    ("config", "arrays", "part"),
    [
        ({"r": 4, "pissa": True}, {}, "pissa=true changes the base model"),
        ({"r": 4, "trainable_bias": "all"}, {}, "trainable_bias is not supported"),
        ({"r": 4}, {}, "has no adapter for a linear layer"),
        ({"r": 4}, {"llama.layers.0.mlp.up_proj.lora_A": (16, 4)}, "missing: llama.layers.0.mlp.up_proj.lora_B"),
        ({}, {}, "r=None must be an integer above 0"),
        ({"r": 4, "lora_alpha": "8"}, {}, "lora_alpha='8' must be a number"),
    ],
)
def test_adapters_of_paddlenlp_that_cannot_be_used_say_why(tmp_path, config, arrays, part):
    (tmp_path / "lora_config.json").write_text(json.dumps(config))
    values = {name: np.zeros(shape, np.float32) for name, shape in arrays.items()}
    (tmp_path / "lora_model_state.pdparams").write_bytes(pickle.dumps(values))
    refused(tmp_path, part, base=CASE)


def test_lengths_have_no_place_in_paddlenlp(llama, tmp_path):
    a, b = np.zeros((16, 2), np.float32), np.zeros((2, 16), np.float32)
    parts = {"llama.layers.0.self_attn.q_proj": LoraWeights(a, b, 1.0, np.ones(16, np.float32))}
    with pytest.raises(CheckpointError, match="does not support DoRA"):
        folders.write(tmp_path, Adapter(parts), *llama, layout="native")


@pytest.mark.parametrize("family", sorted({found.name for found in plugins.installed()}))
def test_every_family_goes_through_the_names_and_packing_of_paddlenlp(family, tmp_path):
    """Ranks and scales that differ too: what the adapter adds to each weight stays the same."""
    plugin = plugins.load(family)
    dims = tiny_dims(plugin.card)
    rng, parts = np.random.default_rng(2), {}
    for number, (path, row) in enumerate(targets.linears(plugin.card, dims).items()):
        rank = 1 + number % 3
        shapes = (row.shape[0], rank), (rank, row.shape[1])
        parts[path] = LoraWeights(*(rng.normal(size=shape) for shape in shapes), 1.0 + number % 2)
    folders.write(tmp_path, Adapter(parts), plugin, dims, "float64", "native")
    back = folders.read(tmp_path, plugin, dims).layers
    assert back.keys() == parts.keys()
    for path, part in parts.items():
        change = back[path].scale * back[path].a @ back[path].b
        np.testing.assert_allclose(change, part.scale * part.a @ part.b, atol=1e-12, err_msg=path)


def test_separate_and_fused_projections_of_paddlenlp_are_read_alike(tmp_path):
    """PaddleNLP's GPT keeps q, k, v apart or side by side for each head; here they are one after another."""
    plugin = plugins.load("gpt3")
    dims = tiny_dims(plugin.card)
    rng, heads, width = np.random.default_rng(3), dims.heads, dims.head_dim
    a = rng.normal(size=(dims.hidden, 2))
    b = {name: rng.normal(size=(2, heads, width)) for name in "qkv"}
    layer = "gpt.decoder.layers.0.self_attn."
    apart = {f"{layer}{n}_proj.lora_{m}": v for n in "qkv" for m, v in (("A", a), ("B", b[n].reshape(2, -1)))}
    fused = {
        layer + "qkv_proj.lora_A": a,
        layer + "qkv_proj.lora_B": np.concatenate([b[n] for n in "qkv"], -1).reshape(2, -1),
    }
    expected = a @ np.concatenate([b[n].reshape(2, -1) for n in "qkv"], axis=1)
    for name, arrays in (("apart", apart), ("fused", fused)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "lora_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 2}))
        (folder / "lora_model_state.pdparams").write_bytes(pickle.dumps(arrays))
        part = folders.read(folder, plugin, dims).layers["gpt.h.0.attn.c_attn"]
        np.testing.assert_allclose(part.scale * part.a @ part.b, expected, atol=1e-12)


def test_merging_holds_a_few_tensors_at_a_time(tmp_path):
    plugin = plugins.load("llama")
    dims = tiny_dims(plugin.card, {"layers": 12, "hidden": 128, "ffn": 256, "head_dim": 32})
    for name in ("model", "adapter"):
        (tmp_path / name).mkdir()
    write_model(tmp_path / "model", plugin, dims)
    rows = targets.linears(plugin.card, dims)
    parts = {
        p: LoraWeights(np.ones((t.shape[0], 2), "f4"), np.ones((2, t.shape[1]), "f4"), 1.0) for p, t in rows.items()
    }
    folders.write(tmp_path / "adapter", Adapter(parts, base=str(tmp_path / "model")), plugin, dims)
    opened = open_adapter(tmp_path / "adapter")
    largest, whole = 4 * max(t.size for t in rows.values()), 4 * plugin.card.count(dims)
    tracemalloc.start()
    merge(opened, tmp_path / "merged", "float32")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * largest < whole / 4


def test_merging_streams_shards_and_leaves_nothing_when_it_fails(adapter, tmp_path):
    opened = open_adapter(adapter)
    merge(opened, tmp_path / "merged", "float32", max_shard_bytes=4000)
    shards = list((tmp_path / "merged").glob("*.safetensors"))
    assert len(shards) > 3 and json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float32"
    with pytest.raises(FileError, match="already exists"):
        merge(opened, tmp_path / "merged")
    for part in opened.adapter.layers.values():
        part.b[:] = 1e30
    with pytest.raises(CheckpointError, match="does not fit into float16"):
        merge(opened, tmp_path / "half", "float16")
    assert not (tmp_path / "half").exists() and not list(tmp_path.glob(".half*"))
