"""``model.add_tokens`` in a run: trained, saved, resumed, merged; nothing is left behind where a run does not begin."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import llmctl
from llmctl import tokenizers
from llmctl.adapters.folder import open_adapter
from llmctl.checkpoint.build import check_model
from llmctl.checkpoint.folder import open_folder
from llmctl.cli import cli
from llmctl.errors import ConfigError, LlmctlError

STARTER = Path(__file__).resolve().parents[3] / "plugins" / "llama" / "llmctl_llama" / "starter"
TOKENS = {"add_tokens": ["Blorp"], "add_special_tokens": ["<|call|>"]}
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def data(tmp_path):
    """Examples that use a new token."""
    path = tmp_path / "train.jsonl"
    rows = [{"src": f"Name number {i}.", "tgt": "Blorp it is."} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(output, data, model=TOKENS, train=(), settings=(), **method):
    """The configuration of two steps of fine-tuning."""
    return {
        "model": {"path": str(STARTER / "model"), **model},
        "method": method,
        "data": {"train": str(data), "src_length": 64, "max_length": 128},
        "train": {"max_steps": 2, "batch_size": 2, "save_every": 1, "learning_rate": 1e-2, **dict(train)},
        "output": {"dir": str(output), "samples": 0, "load_best": False, **dict(settings)},
    }


def rows_of(folder):
    return open_folder(folder).read(EMBEDDING)


def first_id():
    return tokenizers.load(STARTER / "model", "none").vocab_size


def test_full_training_learns_the_rows_and_the_saved_model_has_the_tokens(tmp_path, data):
    run = llmctl.finetune(config(tmp_path / "run", data), quiet=True)
    first = first_id()
    mean, rows = rows_of(STARTER / "model")[:first].mean(0), rows_of(run.model)
    assert len(rows) == max(len(rows_of(STARTER / "model")), first + 2)
    assert np.abs(rows[first] - mean).max() > 1e-3 and not (run.folder / "base").exists()
    added = {row["content"]: row for row in json.loads((run.model / "tokenizer.json").read_text())["added_tokens"]}
    assert (added["Blorp"]["id"], added["Blorp"]["special"]) == (first, False)
    assert (added["<|call|>"]["id"], added["<|call|>"]["special"]) == (first + 1, True)
    assert first in llmctl.load(run.model)[1].encode("A Blorp")


@pytest.mark.parametrize("method", [{}, {"name": "lora", "rank": 2}])
def test_a_resumed_run_is_that_of_one_go(tmp_path, data, method):
    whole = llmctl.finetune(config(tmp_path / "whole", data, **method), quiet=True)
    llmctl.finetune(config(tmp_path / "cut", data, **method), quiet=True)
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-000002")
    steps = sorted(path.name for path in (tmp_path / "cut" / "checkpoints").iterdir())
    assert len(steps) == 1, steps
    again = llmctl.finetune(config(tmp_path / "cut", data, settings={"resume": True}, **method), quiet=True)
    name = "adapter_model.safetensors" if method else "model.safetensors"
    assert (again.model / name).read_bytes() == (whole.model / name).read_bytes()


def test_an_adapter_has_the_grown_model_as_its_base_and_merges_into_it(tmp_path, data):
    with pytest.warns(
        UserWarning,
        match=r"are not trained in llama.embed_tokens.weight; method.modules_to_save=\[embed_tokens, lm_head\] trains",
    ):
        run = llmctl.finetune(config(tmp_path / "run", data, name="lora", rank=2), quiet=True)
    assert open_adapter(run.model).base == (run.folder / "base").resolve()
    done = CliRunner().invoke(cli, ["merge", str(run.model), "--output", str(tmp_path / "merged")])
    assert done.exit_code == 0, done.output
    first, dims = first_id(), check_model(tmp_path / "merged").dims
    known = rows_of(STARTER / "model")
    np.testing.assert_allclose(rows_of(tmp_path / "merged")[first], known[:first].astype("f8").mean(0), rtol=2**-8)
    np.testing.assert_array_equal(rows_of(tmp_path / "merged")[:first], known[:first])
    assert dims.vocab >= first + 2
    assert tokenizers.load(tmp_path / "merged", "none").encode("Blorp", add_special=False) == [first]
    for folder in (run.model, tmp_path / "merged"):
        answered = CliRunner().invoke(
            cli, ["generate", str(folder), "--prompt", "Name number 1.", "--max-new-tokens", "2"]
        )
        assert answered.exit_code == 0, answered.output


def test_an_adapter_with_the_embedding_learns_the_rows(tmp_path, data, recwarn):
    method = {"name": "lora", "rank": 2, "modules_to_save": ["embed_tokens", "lm_head"]}
    run = llmctl.finetune(config(tmp_path / "run", data, **method), quiet=True)
    assert not [warning for warning in recwarn if "not trained" in str(warning.message)]
    done = CliRunner().invoke(cli, ["merge", str(run.model), "--output", str(tmp_path / "merged"), "--verify"])
    assert done.exit_code == 0, done.output
    first = first_id()
    before, after = (rows_of(folder).astype("f8") for folder in (run.folder / "base", tmp_path / "merged"))
    assert np.abs(after[first] - before[first]).max() > 1e-3


def test_tokens_are_checked_before_anything_is_written(tmp_path, data):
    with pytest.raises(LlmctlError, match=r"the token '<\|user\|>' cannot be added"):
        llmctl.finetune(config(tmp_path / "run", data, {"add_tokens": ["<|user|>", "<|user|>"]}), quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_begin_leaves_no_model_behind(tmp_path, data, monkeypatch):
    def fail(*args):
        raise ConfigError("cannot begin")

    monkeypatch.setattr("llmctl.train.trainer._set_up", fail)
    with pytest.raises(ConfigError, match="cannot begin"):
        llmctl.finetune(config(tmp_path / "run", data), quiet=True)
    assert not (tmp_path / "run").exists()


def test_overwriting_replaces_the_base_of_the_run_before(tmp_path, data):
    llmctl.finetune(config(tmp_path / "run", data, name="lora", rank=2), quiet=True)
    before = check_model(tmp_path / "run" / "base")
    other = config(tmp_path / "run", data, {}, settings={"overwrite": True}, name="lora", rank=2)
    run = llmctl.finetune(other, quiet=True)
    assert before and not (run.folder / "base").exists()
    assert open_adapter(run.model).base == STARTER / "model"
