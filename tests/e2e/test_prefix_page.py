"""Every command that docs/prefix.md shows works as shown, in order; run in this process."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmctl.cli import main

ROOT = Path(__file__).resolve().parents[2]
STARTER = ROOT / "plugins" / "llama" / "llmctl_llama" / "starter"
PAGE = (ROOT / "docs" / "prefix.md").read_text(encoding="utf-8")
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
    Path("prefix.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1], encoding="utf-8")
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(commands) >= 8
    for line in commands:
        name, *words = shlex.split(line)
        assert name == "llmctl"
        quick = QUICK if "finetune" in words and "--check" not in words else []
        code, text = run([*words, *quick])
        assert code == 0 and "Traceback" not in text, (line, text)
    names = {path.name for path in Path("runs/prefix-paddlenlp").iterdir()}
    assert {"prefix_config.json", "prefix_model_state.pdparams", "pre_caches.npy"} <= names
    code, text = run(["merge", "runs/prefix/model", "--output", "runs/merged"])
    assert code == 2 and "a prefix, which cannot be merged" in text and not Path("runs/merged").exists()
