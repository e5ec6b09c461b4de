"""The commands that a run suggests at its end and in its report run as they are pasted into a shell."""

import html
import os
import re
import subprocess
import sys

import pytest
from kit.model_cli import STARTER, llmctl

from llmctl.report.next_commands import try_line

LLMCTL = f'llmctl() {{ "{sys.executable}" -m llmctl "$@"; }}\n'


def pasted(line, folder):
    done = subprocess.run(
        ["bash", "-c", LLMCTL + line], cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        env=dict(os.environ), stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_a_run_suggests_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = STARTER.parent / "data"
    settings = {"data.train": data, "data.max_length": 64, "train.max_steps": 1, "train.eval_max_new_tokens": 1}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    said = llmctl("finetune", "--model", STARTER, *sets, "--output", "it's a run")[0]
    line = re.search(r"^try it: (.*)$", said, re.MULTILINE)[1]
    assert pasted(line, tmp_path)
    page = (tmp_path / "it's a run" / "report.html").read_text()
    shown = [html.unescape(text) for text in re.findall(r"llmctl [^<\n]*", page)]
    again = next(text for text in shown if " generate " in text)
    assert pasted(again, "/") == pasted(line, tmp_path)
    assert "report.html written" in pasted(next(text for text in shown if text.startswith("llmctl report '")), "/")


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([], "llmctl --model opt chat 'my run'"),
        (["What's new?"], "llmctl --model opt generate 'my run' --prompt 'What'\"'\"'s new?'"),
        (["--help"], "llmctl --model opt generate 'my run' --prompt=--help"),
        (["-", "two\nlines", "x" * 200], "llmctl --model opt chat 'my run'"),
        (["x" * 200, "short"], "llmctl --model opt generate 'my run' --prompt short"),
    ],
)
def test_a_short_held_out_prompt_is_asked(prompts, expected):
    from pathlib import Path

    info = {"family": "opt", "after": {"samples": [{"prompt": prompt} for prompt in prompts]}}
    assert try_line(Path("my run"), info) == expected
