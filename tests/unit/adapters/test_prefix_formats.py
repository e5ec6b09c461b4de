"""Prefixes on disk: those that peft made give peft's logits and tokens, PaddleNLP's layout, and what does not fit.

The goldens are made by tools/goldens/make_adapter_golden.py, so that neither torch nor peft is needed here.
"""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest

from llmctl import plugins
from llmctl.adapters import folder as folders
from llmctl.adapters.attach import load_adapted
from llmctl.adapters.folder import open_adapter
from llmctl.adapters.prefix import Prefix, shape_of
from llmctl.card.tiny import tiny_dims
from llmctl.checkpoint.build import load_model
from llmctl.checkpoint.formats import safetensors
from llmctl.errors import CheckpointError
from llmctl.infer.eager.generate import generate
from llmctl.infer.sampling import SamplingParams

GOLDENS = Path(__file__).resolve().parents[2] / "goldens" / "prefixes"
CASES = sorted(path.name for path in GOLDENS.iterdir())
RNG = np.random.default_rng(4)


def stored(folder):
    info = safetensors.read_header(folder / "adapter_model.safetensors")["prompt_embeddings"]
    return info.shape, np.fromfile(info.file, "<f4", info.size, offset=info.offset)


@pytest.mark.parametrize("case", CASES)
def test_a_prefix_of_peft_gives_the_logits_and_tokens_of_peft(case):
    golden = np.load(GOLDENS / case / "golden.npz")
    model, _ = load_adapted(GOLDENS / case / "adapter")
    plain = load_model(GOLDENS / case)[0]
    ids = paddle.to_tensor(golden["input_ids"])
    with paddle.no_grad():
        model.eval(), plain.eval()
        np.testing.assert_allclose(model(ids).numpy(), golden["logits"], atol=1e-4)
        assert np.abs(plain(ids).numpy() - golden["logits"]).max() > 0.1
    prompt, expected = golden["input_ids"][0].tolist(), golden["greedy_ids"][0].tolist()
    for use_cache in (True, False):
        made = generate(model, [prompt], SamplingParams(max_new_tokens=6), [], 0, use_cache=use_cache)
        assert [*prompt, *made[0].ids] == expected


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_what_peft_wrote(case, tmp_path):
    folder = GOLDENS / case / "adapter"
    opened = open_adapter(folder)
    folders.write(tmp_path, opened.adapter, opened.plugin, opened.dims)
    (shape, values), (ours, written) = stored(folder), stored(tmp_path)
    assert shape == ours
    np.testing.assert_array_equal(written, values)
    config, mine = (json.loads((path / "adapter_config.json").read_text()) for path in (folder, tmp_path))
    for key in ("peft_type", "task_type", "num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers"):
        assert mine[key] == config[key], key


@pytest.fixture(params=["mixtral", "chatglm2"])
def native(request, tmp_path):
    """A prefix of a family whose queries share keys, in PaddleNLP's files."""
    plugin = plugins.load(request.param)
    dims = tiny_dims(plugin.card)
    assert dims.kv_heads < dims.heads
    prefix = Prefix(RNG.normal(size=shape_of(dims, 3)).astype("float32"))
    folders.write(tmp_path, prefix, plugin, dims, layout="native")
    return plugin, dims, prefix, tmp_path


def in_pairs(key):
    """A key in the original's order: here the first half of a head has its pairs apart, there side by side."""
    half = len(key) // 4
    return np.r_[np.stack([key[:half], key[half : 2 * half]], axis=1).ravel(), key[2 * half :]]


def test_paddlenlp_holds_all_keys_before_all_values(native):
    plugin, dims, prefix, folder = native
    weight = pickle.loads((folder / "prefix_model_state.pdparams").read_bytes())["0.weight"]
    caches = np.load(folder / "pre_caches.npy")
    flat = weight.reshape(3, 2, dims.layers, dims.kv_heads, dims.head_dim)
    for layer, kind, token, head in np.ndindex(dims.layers, 2, 3, dims.kv_heads):
        expected = prefix.values[layer, kind, token, head]
        if plugin.card.name == "chatglm2" and kind == 0:
            expected = in_pairs(expected)
        np.testing.assert_array_equal(flat[token, kind, layer, head], expected)
        np.testing.assert_array_equal(caches[layer, kind, head, token], expected)
    config = json.loads((folder / "prefix_config.json").read_text())
    assert (config["num_attention_heads"], config["multi_query_group_num"]) == (dims.heads, dims.kv_heads)


def test_paddlenlp_files_are_read_from_either(native):
    plugin, dims, prefix, folder = native
    np.testing.assert_array_equal(folders.read(folder, plugin, dims).values, prefix.values)
    (folder / "prefix_model_state.pdparams").unlink()
    np.testing.assert_array_equal(folders.read(folder, plugin, dims).values, prefix.values)
    for name in ("prefix_config.json", "llmctl.json"):
        (folder / name).unlink()
    assert folders.is_adapter(folder)
    np.testing.assert_array_equal(folders.read(folder, plugin, dims).values, prefix.values)


def test_a_projected_prefix_of_paddlenlp_is_read_as_what_it_comes_to(tmp_path):
    plugin = plugins.load("mixtral")
    dims = tiny_dims(plugin.card)
    width, flat = dims.kv_heads * dims.head_dim, 2 * dims.layers * dims.kv_heads * dims.head_dim
    sizes = {"0.weight": (3, width), "1.weight": (width, 6), "1.bias": (6,), "3.weight": (6, flat), "3.bias": (flat,)}
    arrays = {name: RNG.normal(size=size).astype("float32") for name, size in sizes.items()}
    (tmp_path / "prefix_model_state.pdparams").write_bytes(pickle.dumps(arrays, protocol=4))
    config = {"num_prefix_tokens": 3, "num_attention_heads": dims.heads, "multi_query_group_num": dims.kv_heads,
              "num_hidden_layers": dims.layers, "hidden_size": dims.heads * dims.head_dim, "prefix_projection": True,
              "prefix_projection_hidden_size": 6}  # fmt: skip
    (tmp_path / "prefix_config.json").write_text(json.dumps(config))
    values = folders.read(tmp_path, plugin, dims).values
    for token in range(3):
        hidden = np.tanh(arrays["0.weight"][token] @ arrays["1.weight"] + arrays["1.bias"])
        row = (hidden @ arrays["3.weight"] + arrays["3.bias"]).reshape(2, dims.layers, dims.kv_heads, dims.head_dim)
        np.testing.assert_allclose(values[:, :, token], row.transpose(1, 0, 2, 3), rtol=1e-5, atol=1e-6)


def change(name, **values):
    def apply(folder):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change("adapter_config.json", num_layers=7), "num_layers=7, but the base model has 2"),
        (change("adapter_config.json", token_dim=16, num_attention_heads=4), "token_dim=16, but the base model has 8"),
        (change("adapter_config.json", num_virtual_tokens=9), "wrong shape: prompt_embeddings"),
        (change("adapter_config.json", num_virtual_tokens="5"), "must be an integer above 0"),
        (change("adapter_config.json", task_type="SEQ_2_SEQ_LM"), "task_type='SEQ_2_SEQ_LM' is not supported"),
        (change("adapter_config.json", new_trick=True), "new_trick=True is not supported"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "neither adapter_model.safetensors"),
    ],
)
def test_a_prefix_that_does_not_fit_is_refused(tmp_path, spoil, message):
    shutil.copytree(GOLDENS / "llama_projected", tmp_path / "model")
    spoil(tmp_path / "model" / "adapter")
    with pytest.raises(CheckpointError, match=message):
        open_adapter(tmp_path / "model" / "adapter")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change("prefix_config.json", multi_query_group_num=None), "heads=4, but the base model has 2"),
        (change("prefix_config.json", num_prefix_tokens=None), "num_prefix_tokens=None must be an integer"),
        (change("prefix_config.json", hidden_size="wide"), "hidden_size='wide' must be null or an integer above 0"),
        (change("prefix_config.json", prefix_projection=True), "missing: 1.weight"),
        (lambda folder: [path.unlink() for path in folder.glob("pre*.[pn]*s") if "config" not in path.name]
         and (folder / "pre_caches.npy").unlink(), "neither prefix_model_state"),
    ],
)  # fmt: skip
def test_paddlenlp_files_that_do_not_fit_are_refused(native, spoil, message):
    plugin, dims, _, folder = native
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        folders.read(folder, plugin, dims)


@pytest.mark.parametrize("content", [np.zeros((2, 2, 2, 3)), np.zeros((2, 2, 4, 3, 16)), b"not numpy"])
def test_caches_that_do_not_fit_are_refused(native, content):
    plugin, dims, _, folder = native
    (folder / "prefix_model_state.pdparams").unlink()
    if isinstance(content, bytes):
        (folder / "pre_caches.npy").write_bytes(content)
    else:
        np.save(folder / "pre_caches.npy", content)
    with pytest.raises(CheckpointError, match=r"pre_caches\.npy (is|cannot be read)"):
        folders.read(folder, plugin, dims)
