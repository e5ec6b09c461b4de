"""Every command that docs/lora.md shows works as shown, in order; run in this process."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmctl.cli import main

ROOT = Path(__file__).resolve().parents[2]
STARTER = ROOT / "plugins" / "llama" / "llmctl_llama" / "starter"
PAGE = (ROOT / "docs" / "lora.md").read_text(encoding="utf-8")
QUICK = [
    "--set",
    "train.max_steps=2",
    "--set",
    "data.max_length=128",
    "--set",
    "data.src_length=64",
    "--set",
    "output.samples=0",
]


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
        lines = (STARTER / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:8]
        (Path("my-data") / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Path("lora.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1], encoding="utf-8")
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(commands) >= 9
    for line in commands:
        name, *words = shlex.split(line)
        assert name == "llmctl"
        quick = QUICK if "finetune" in words and "--check" not in words else []
        code, text = run([*words, *quick])
        assert code == 0 and "Traceback" not in text, (line, text)
    assert Path("runs/merged/model.safetensors").is_file() and Path("runs/lora-paddlenlp/lora_config.json").is_file()
    back = ["convert", "runs/lora-paddlenlp", "runs/back", "--to", "hf", "--base", "path/to/model"]
    assert run(back)[0] == 0 and run(["convert", "runs/back", "--check"])[0] == 0
    name = "adapter_model.safetensors"
    assert Path("runs/back", name).read_bytes() == Path("runs/lora/model", name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["merge", "model", "--output", "out"], "holds no adapter"),
        (["merge", "model", "--output", "model"], "exists already"),
        (["merge", "model", "--output", "out", "--max-shard-size", "5TB"], "is not a size"),
        (["generate", "model", "--base", "model", "--prompt", "a"], "--base and --allow-other-base are for adapters"),
        (["generate", "model", "--adapter", "model", "--prompt", "a"], "holds no adapter"),
        (["convert", "model", "out", "--base", "model"], "--base is for adapters"),
        (["generate", "model", "--allow-other-base", "--prompt", "a"], "are for adapters"),
    ],
)
def test_mistakes_are_refused(tmp_path, monkeypatch, arguments, part):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(STARTER / "model", "model")
    code, text = run(arguments)
    assert code == 2 and part in text and "Traceback" not in text, text
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
