"""The commands of docs/migrating.md work as shown, and an old file trains as the configuration it becomes."""

import json
import shlex
import shutil

import pytest
from click.testing import CliRunner
from kit.readme import STARTER, shown

from llmctl.cli import main


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An old configuration for data and a model that are there, and one that asks for several devices."""
    shutil.copytree(STARTER / "model", tmp_path / "model")
    (tmp_path / "data").mkdir()
    for name in ("train", "dev"):
        lines = (STARTER / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:8]
        (tmp_path / "data" / f"{name}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    old = {
        "model_name_or_path": "model", "dataset_name_or_path": "data", "output_dir": "out", "do_train": True,
        "do_eval": True, "max_steps": 2, "src_length": 32, "max_length": 64, "metric_for_best_model": "accuracy",
        "load_best_model_at_end": True, "bf16": True, "fp16_opt_level": "O2", "evaluation_strategy": "epoch",
        "lora": True, "lora_rank": 2, "disable_tqdm": True,
    }  # fmt: skip
    (tmp_path / "old_argument.json").write_text(json.dumps(old))
    (tmp_path / "large_argument.json").write_text(json.dumps({**old, "tensor_parallel_degree": 8}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def llmctl(*words, code=0):
    with CliRunner().isolation() as streams, pytest.raises(SystemExit) as stopped:
        main(list(words))
    out = streams[0].getvalue().decode()
    assert stopped.value.code == code, out + streams[1].getvalue().decode()
    return out


def test_every_shown_command_works(workplace):
    for line in shown("docs/migrating.md"):
        assert llmctl(*shlex.split(line)[1:]), line


def test_an_old_file_runs_and_one_for_another_command_is_refused(workplace):
    llmctl("--model", "llama", "finetune", "old_argument.json", "--set", "output.samples=0")
    info = json.loads((workplace / "out" / "run.json").read_text())
    assert info["config"]["method"]["name"] == "lora" and info["steps"] == 2
    llmctl("--model", "llama", "pretrain", "old_argument.json", code=2)
    llmctl("--model", "llama", "finetune", "large_argument.json", code=2)
