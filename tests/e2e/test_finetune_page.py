"""Every command that docs/finetune.md shows works as shown, in order, and leaves what the page says; in this process."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_readme import ROOT, STARTER, shown

from llmctl.checkpoint import safetensors_file
from llmctl.cli import main
from llmctl.data.reading import parse_example

PAGE = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8")
QUICK = {
    "train.max_steps": 2,
    "train.save_every": 1,
    "data.max_length": 128,
    "data.src_length": 64,
    "output.samples": 0,
}


def run(arguments):
    """Exit code and output of a command in this process."""
    with CliRunner().isolation() as streams, pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code, b"".join(stream.getvalue() for stream in streams[:2]).decode()


def test_the_commands_work_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(STARTER / "model", Path("path") / "to" / "model")
    Path("my-data").mkdir()
    for name in ("train", "dev"):
        lines = (STARTER / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:80]
        (Path("my-data") / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Path("sft.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1], encoding="utf-8")
    commands = shown("docs/finetune.md")
    assert len(commands) >= 9
    quick = [part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")]
    said = {}
    for line in commands:
        name, *words = shlex.split(line)
        assert name == "llmctl"
        code, said[line] = run([*words, *(quick if "finetune" in words and "--check" not in words else [])])
        assert code == 0 and said[line] and "Traceback" not in said[line], (line, said[line])
    assert "packed: 80 examples in" in said["llmctl finetune sft.yaml"]
    assert "largest train.batch_size that fits" in said["llmctl plan sft.yaml"]
    statistics = [json.loads(line) for line in Path("runs/mine/statistics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in statistics] == [1, 2]
    assert {"weight", "gradient", "gradient_max"} == set(next(iter(statistics[0]["tensors"].values())))
    kept = Path("runs/mine/checkpoints/step-000002")
    assert {entry.dtype for entry in safetensors_file.read_header(kept / "model.safetensors").values()} == {"bfloat16"}
    assert (kept / "average.safetensors").is_file() and Path("comparison.html").is_file()
    code, text = run(["finetune", "sft.yaml", *quick, "--resume", "--set", "train.learning_rate=1"])
    assert code == 2 and "train.learning_rate: 2e-05 when the run began, 1.0 now" in text
    assert run(["generate", str(kept), "--prompt", "Deny this: Tom lives in Rome."])[0] == 0


def test_the_lines_of_data_that_the_page_shows_are_some():
    lines = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()
    assert [len(parse_example(line, "page").src) for line in lines] == [1, 2]
