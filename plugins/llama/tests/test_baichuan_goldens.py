"""Baichuan against recordings of the original code."""

import json
import shutil

import numpy as np
import paddle
import pytest

from llmctl.testing import check_golden, load_model
from llmctl_llama.baichuan import CARD


def test_positions_and_head_follow_the_release():
    kinds = {size: (CARD.dims_of(size).position, CARD.dims_of(size).norm_head) for size in CARD.sizes}
    assert kinds == {
        "baichuan-7b": ("rope", False),
        "baichuan-13b": ("alibi", False),
        "baichuan2-7b": ("rope", True),
        "baichuan2-13b": ("alibi", True),
    }


@pytest.mark.parametrize(
    ("config", "normalised"),
    [
        ({"vocab_size": 64000}, False),
        ({"vocab_size": 64008}, False),
        ({"vocab_size": 125_696}, True),
        ({"vocab_size": 125_704}, True),
        ({"vocab_size": 4096, "z_loss_weight": 0}, True),
        ({"vocab_size": 64000, "z_loss_weight": 0, "norm_head": False}, False),
        ({"vocab_size": 130_000, "architectures": ["BaiChuanForCausalLM"]}, False),
    ],
)
def test_the_generation_is_what_config_json_says_whatever_the_vocabulary(config, normalised):
    published = CARD.config_from_dims(CARD.dims_of("baichuan2-13b"))
    config = {key: value for key, value in published.items() if key not in ("norm_head", "z_loss_weight")} | config
    assert CARD.dims_from_config(config).norm_head is normalised


@pytest.mark.assets
def test_recorded_results_are_repeated(assets, tmp_path):
    check_golden(assets / "goldens_remote" / "baichuan7b_rope")
    # It was saved with the configuration class of the second generation.
    folder = shutil.copytree(assets / "goldens_remote" / "baichuan13b_alibi", tmp_path / "first")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "norm_head": False}))
    check_golden(folder)


@pytest.mark.assets
def test_recorded_results_of_a_normalised_head_are_repeated(assets, tmp_path):
    folder = shutil.copytree(assets / "goldens_remote" / "baichuan2_13b_normhead", tmp_path / "model")
    golden = dict(np.load(folder / "golden.npz"))
    norms = json.loads(str(golden["grad_norms"]))
    straight, through = head_gradients(folder, golden)
    # Outside training the original replaces the weights by the normalised ones and differentiates by those.
    assert norms["lm_head.weight"] == pytest.approx(straight, rel=1e-3)
    golden["grad_norms"] = np.array(json.dumps({**norms, "lm_head.weight": through}))
    np.savez(folder / "golden.npz", **golden)
    check_golden(folder)


def head_gradients(folder, golden):
    """Norms of the loss's gradient by the normalised and by the stored rows of the head, in numpy."""
    model, _, _ = load_model(folder, dtype="float64")
    with paddle.no_grad():
        hidden = model.hidden_states(paddle.to_tensor(golden["input_ids_train"])).numpy()[0, :-1]
    rows = model.lm_head.weight.numpy().T
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit, labels = rows / length, golden["labels"][0, 1:]
    scores = hidden @ unit.T
    error = np.exp(scores - scores.max(1, keepdims=True))
    error /= error.sum(1, keepdims=True)
    kept = labels != -100
    error[np.flatnonzero(kept), labels[kept]] -= 1
    straight = (error[kept].T @ hidden[kept]) / kept.sum()
    through = (straight - (straight * unit).sum(1, keepdims=True) * unit) / length
    return np.linalg.norm(straight), np.linalg.norm(through)
