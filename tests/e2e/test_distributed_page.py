"""Every command that docs/distributed.md shows works as shown, in order."""

import json
from pathlib import Path

from kit.pages import config_of, follow, lay_out

PAGE = "docs/distributed.md"
SHORT = {
    "train.max_steps": 2,
    "train.save_every": 2,
    "train.eval_generate": "false",
    "train.best_metric": "eval_loss",
    "data.max_length": 128,
    "output.samples": 0,
}


def test_the_commands_work_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMCTL_THREADS", "1")
    lay_out(16)
    Path("distributed.yaml").write_text(config_of(PAGE), encoding="utf-8")
    follow(PAGE, "finetune", SHORT, 7)
    assert json.loads(Path("runs/distributed/run.json").read_text())["processes"] == 4
    assert len(list(Path("runs/distributed/logs").iterdir())) == 3
