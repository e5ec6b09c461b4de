"""Keys of config.json that the user says have no effect: training takes the model, and what it saves works everywhere."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import llmctl
from llmctl.adapters.folder import open_adapter
from llmctl.checkpoint.build import check_model
from llmctl.cli import cli
from llmctl.errors import ConfigError

STARTER = Path(__file__).resolve().parents[3] / "plugins" / "llama" / "llmctl_llama" / "starter"


@pytest.fixture
def odd(tmp_path):
    """The starter with a key in config.json that nothing here knows."""
    folder = shutil.copytree(STARTER / "model", tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attn_window": 64}))
    return folder


def config(model, output, ignored=("attn_window",), **method):
    """The configuration of one step of fine-tuning."""
    dev = str(STARTER / "data" / "dev.jsonl")
    return {
        "model": {"path": str(model), "ignore_config_keys": list(ignored)},
        "method": method,
        "data": {"train": dev, "src_length": 64, "max_length": 128},
        "train": {"max_steps": 1, "batch_size": 2, "eval_batch_size": 32},
        "output": {"dir": str(output), "samples": 0},
    }


def test_an_unknown_key_is_refused_with_the_way_out(odd, tmp_path):
    with pytest.raises(
        ConfigError, match=r"remove it from the file, or train with model\.ignore_config_keys: \[attn_window\]"
    ):
        llmctl.finetune(config(odd, tmp_path / "run", ()), quiet=True)


@pytest.mark.parametrize(
    ("ignored", "message"),
    [
        (["attn_windw", "attn_window"], "config.json has no 'attn_windw'; did you mean 'attn_window'"),
        (["other"], "config.json has no 'other'; leave it out"),
        (["attn_window", "rope_theta"], "llama reads rope_theta=10000.0, so it cannot be ignored; leave it out"),
    ],
)
def test_only_keys_that_are_there_and_that_nothing_reads_can_be_ignored(odd, tmp_path, ignored, message):
    with pytest.raises(ConfigError, match=message):
        llmctl.finetune(config(odd, tmp_path / "run", ignored), quiet=True)


def test_a_trained_model_no_longer_has_the_key(odd, tmp_path):
    run = llmctl.finetune(config(odd, tmp_path / "run"), quiet=True)
    assert "attn_window" not in json.loads((run.model / "config.json").read_text())
    assert check_model(run.model).dims == check_model(STARTER / "model").dims


def test_an_adapter_remembers_the_key_of_its_base(odd, tmp_path):
    run = llmctl.finetune(config(odd, tmp_path / "run", name="lora", rank=2), quiet=True)
    assert open_adapter(run.model).base == odd
    for target, command in (("merged", ["merge", str(run.model), "--output", str(tmp_path / "merged")]),
                            ("packed", ["export", str(odd), "--engine", "fused", "--adapter", str(run.model), "--output",
                                        str(tmp_path / "packed")])):  # fmt: skip
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 0, done.output
        assert "attn_window" not in json.loads((tmp_path / target / "config.json").read_text())
    answered = CliRunner().invoke(cli, ["generate", str(run.model), "--prompt", "Deny this: Tom lives in Rome.",
                                         "--max-new-tokens", "2"])  # fmt: skip
    assert answered.exit_code == 0, answered.output
