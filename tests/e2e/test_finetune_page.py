"""Every command that docs/finetune.md shows works as shown, in order, and leaves what the page says; in this process."""

import json
import re
from pathlib import Path

from kit.pages import ROOT, SHORT, config_of, follow, lay_out, quick, run

from llmctl.checkpoint.formats import safetensors
from llmctl.data.sft.examples import ExampleReader

PAGE = "docs/finetune.md"
QUICK = {**SHORT, "train.save_every": 1}


def test_the_commands_work_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_out(80)
    Path("sft.yaml").write_text(config_of(PAGE), encoding="utf-8")
    said = follow(PAGE, "finetune", QUICK, 9)
    assert all(said.values())
    assert "packed: 80 examples in" in said["llmctl finetune sft.yaml"]
    assert "largest train.batch_size that fits" in said["llmctl plan sft.yaml"]
    statistics = [json.loads(line) for line in Path("runs/mine/statistics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in statistics] == [1, 2]
    assert {"weight", "gradient", "gradient_max"} == set(next(iter(statistics[0]["tensors"].values())))
    kept = Path("runs/mine/checkpoints/step-000002")
    assert {entry.dtype for entry in safetensors.read_header(kept / "model.safetensors").values()} == {"bfloat16"}
    assert (kept / "average.safetensors").is_file() and Path("comparison.html").is_file()
    code, text = run(["finetune", "sft.yaml", *quick(QUICK), "--resume", "--set", "train.learning_rate=1"])
    assert code == 2 and "train.learning_rate: 2e-05 when the run began, 1.0 now" in text
    assert run(["generate", str(kept), "--prompt", "Deny this: Tom lives in Rome."])[0] == 0


def test_the_lines_of_data_that_the_page_shows_are_some():
    lines = re.search(r"```json\n(.*?)```", (ROOT / PAGE).read_text(encoding="utf-8"), re.DOTALL)[1].splitlines()
    assert [len(ExampleReader()(line, "page").conversation.turns) for line in lines] == [1, 2]
