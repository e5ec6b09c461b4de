"""The command of docs/reliability.md works as shown, and its tables are what the tool makes."""

import importlib.util
import shutil
from pathlib import Path

from kit.pages import STARTER, follow
from kit.readme import ROOT

from llmctl.io.checksums import write_manifest


def test_the_command_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/demo").mkdir(parents=True)
    shutil.copytree(STARTER / "model", "runs/demo/model")
    Path("runs/demo/run.json").write_text("{}")
    write_manifest(Path("runs/demo/model"))
    follow("docs/reliability.md", "verify", {}, 1)


def test_figures_become_tables():
    spec = importlib.util.spec_from_file_location("reliability", ROOT / "tools" / "reliability.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    rows = [
        {"kind": "b", "inputs": 1000, "refused": 900, "failures": 0},
        {"kind": "a", "inputs": 500, "refused": 400, "failures": 1},
        {"kind": "llmctl x", "operations": 9, "points": 25, "killed": 9, "refused": 12, "done": 4, "failures": 0},
    ]
    lines = tool.table(rows).splitlines()
    assert lines[2:5] == ["| a | 500 | 400 | 1 |", "| b | 1,000 | 900 | 0 |", "| **all** | 1,500 | 1,300 | 1 |"]
    assert lines[-1] == "| **all** | 9 | 25 | 9 | 12 | 4 | 0 |"
