"""Paddle's own files: one, or one per tensor-parallel rank; nothing in them is run."""

import json
import pickle

import numpy as np
import pytest

from llmctl import plugins
from llmctl.checkpoint import convert as conversion
from llmctl.errors import CheckpointError

PLUGIN = plugins.load("llama")
DIMS = PLUGIN.card.dims_of("llama2-7b", layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, vocab=96)


@pytest.fixture
def state():
    """Random tensors by paddle's names, in paddle's layout."""
    rng = np.random.default_rng(0)
    return {t.name: rng.normal(size=t.shape).astype("f4") for t in PLUGIN.card.expand(DIMS)}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PLUGIN.card.config_from_dims(DIMS)))
    return tmp_path


def same(folder, state):
    found = conversion.open_source(folder, PLUGIN, DIMS)
    assert found.layout == "native"
    return all(np.array_equal(found.state[name].numpy(), values) for name, values in state.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_file_that_paddle_saved_is_read(folder, state, dtype):
    import paddle

    tensors = {name: paddle.to_tensor(values).astype(dtype) for name, values in state.items()}
    paddle.save(tensors, str(folder / "model_state.pdparams"))
    found = conversion.open_source(folder, PLUGIN, DIMS).state
    for name, tensor in tensors.items():
        assert np.array_equal(found[name].numpy(), tensor.numpy()) and found[name].dtype == dtype
    conversion.convert(conversion.open_source(folder, PLUGIN, DIMS), folder / "hf", "hf")
    back = conversion.open_source(folder / "hf", PLUGIN, DIMS).state
    assert all(np.array_equal(back[name].numpy(), tensor.numpy()) for name, tensor in tensors.items())


def test_shards_of_ranks_are_put_together(folder, state):
    halves = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
    for rank in range(2):
        part = {}
        for name, values in state.items():
            axis = 1 if any(f"{key}.weight" in name for key in halves) else 0
            divided = axis == 1 or any(key in name for key in ("o_proj", "down_proj", "embed_tokens"))
            part[name] = np.split(values, 2, axis=axis)[rank] if divided else values
        (folder / f"model_state.tp0{rank}.pdparams").write_bytes(pickle.dumps(part))
    assert same(folder, state)
    last = (folder / "model_state.tp01.pdparams").rename(folder / "last")
    with pytest.raises(CheckpointError, match="each of 1 ranks has .* is the file of a rank missing"):
        conversion.open_source(folder, PLUGIN, DIMS)
    last.rename(folder / "model_state.tp01.pdparams")
    (folder / "model_state.tp00.pdparams").unlink()
    with pytest.raises(CheckpointError, match="shards of 1 ranks; missing: 0"):
        conversion.open_source(folder, PLUGIN, DIMS)


def test_code_in_a_file_is_not_run(folder):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    (folder / "model_state.pdparams").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(CheckpointError, match=r"is refused: its pickle refers to builtins\.print"):
        conversion.open_source(folder, PLUGIN, DIMS)


@pytest.mark.parametrize("content", [b"", b"\x80\x04", pickle.dumps([1]), pickle.dumps({"a": "text"})])
def test_damaged_files_are_named(folder, content):
    (folder / "model_state.pdparams").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model_state\.pdparams"):
        conversion.open_source(folder, PLUGIN, DIMS)
