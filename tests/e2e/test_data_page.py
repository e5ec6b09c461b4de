"""Every command of docs/data.md works as shown, in order."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_readme import STARTER, shown

from llmctl.cli import main


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """What the page speaks of: texts, pages.jsonl, a model and data for fine-tuning."""
    shutil.copytree(STARTER / "model", tmp_path / "path" / "to" / "model")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("".join(f"Mia likes to eat {n} pears.\n\n" for n in range(200)))
    rows = ({"title": f"Page {n}", "text": "Leo lives in Rome. " * 3} for n in range(100))
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("train", "dev"):
        shutil.copy(STARTER / "data" / f"{name}.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_shown_command_works(workplace):
    commands = shown("docs/data.md")
    assert len(commands) >= 8
    for line in commands:
        words = shlex.split(line)
        assert words[0] == "llmctl", line
        with CliRunner().isolation() as streams, pytest.raises(SystemExit) as stopped:
            main(words[1:])
        assert stopped.value.code == 0 and streams[0].getvalue(), line
    assert list((workplace / Path("corpora", "index-cache")).rglob("*.npy"))
