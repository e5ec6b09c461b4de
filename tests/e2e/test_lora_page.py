"""Every command that docs/lora.md shows works as shown, in order; run in this process."""

import shutil
from pathlib import Path

import pytest
from kit.pages import SHORT, STARTER, config_of, follow, lay_out, run

PAGE = "docs/lora.md"


def test_the_commands_work_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_out(8)
    Path("lora.yaml").write_text(config_of(PAGE), encoding="utf-8")
    follow(PAGE, "finetune", SHORT, 15)
    assert Path("runs/merged/model.safetensors").is_file() and Path("runs/lora-paddlenlp/lora_config.json").is_file()
    back = ["convert", "runs/lora-paddlenlp", "runs/back", "--to", "hf", "--base", "path/to/model"]
    assert run(back)[0] == 0 and run(["convert", "runs/back", "--check"])[0] == 0
    name = "adapter_model.safetensors"
    assert Path("runs/back", name).read_bytes() == Path("runs/lora/model", name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["merge", "model", "--output", "out"], "holds no adapter"),
        (["merge", "model", "--output", "model"], "already exists"),
        (["merge", "model", "--output", "out", "--max-shard-size", "5TB"], "is not a size"),
        (["generate", "model", "--base", "model", "--prompt", "a"], "--base and --allow-other-base are for adapters"),
        (["generate", "model", "--adapter", "model", "--prompt", "a"], "holds no adapter"),
        (["convert", "model", "out", "--base", "model"], "--base has no effect"),
        (["generate", "model", "--allow-other-base", "--prompt", "a"], "are for adapters"),
    ],
)
def test_mistakes_are_refused(tmp_path, monkeypatch, arguments, part):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(STARTER / "model", "model")
    code, text = run(arguments)
    assert code == 2 and part in text and "Traceback" not in text, text
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
