"""Every command of docs/data.md and docs/pretraining.md works as shown, in order."""

import json
import re
import shlex
import shutil

import pytest
from click.testing import CliRunner
from kit.readme import ROOT, STARTER, shown

from llmctl.cli import main


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """What the page speaks of: texts, pages.jsonl, a model, data for fine-tuning and pairs."""
    shutil.copytree(STARTER / "model", tmp_path / "path" / "to" / "model")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("".join(f"Mia likes to eat {n} pears.\n\n" for n in range(200)))
    rows = ({"title": f"Page {n}", "text": "Leo lives in Rome. " * 3} for n in range(100))
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("train", "dev"):
        shutil.copy(STARTER / "data" / f"{name}.jsonl", tmp_path)
    pairs = ({"prompt": f"Name {n}.", "chosen": f"It is {n}.", "rejected": "No."} for n in range(4))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_shown_command_works(workplace):
    follow("docs/data.md", 9)
    assert list((workplace / "corpora" / "index-cache").rglob("*.npy"))


def test_the_shown_pretraining_works(workplace):
    text = (ROOT / "docs" / "pretraining.md").read_text(encoding="utf-8")
    config = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1]
    assert "max_steps: 2000" in config
    (workplace / "my-pretrain.yaml").write_text(config.replace("max_steps: 2000", "max_steps: 2"), encoding="utf-8")
    follow("docs/pretraining.md", 7)
    assert "test" in json.loads((workplace / "runs" / "pretrained" / "run.json").read_text(encoding="utf-8"))


def follow(page, at_least):
    commands = shown(page)
    assert len(commands) >= at_least
    for line in commands:
        words = shlex.split(line)
        assert words[0] == "llmctl", line
        with CliRunner().isolation() as streams, pytest.raises(SystemExit) as stopped:
            main(words[1:])
        assert stopped.value.code == 0 and streams[0].getvalue(), line
