"""Completion of recipes, families and settings, in the protocol of each shell and in bash itself."""

import subprocess
import sys

import pytest

from llmctl.cli import cli
from llmctl.commands import completion

HEAVY = "print('HEAVY', [m for m in ('paddle', 'numpy', 'rich') if m in sys.modules])"


@pytest.fixture
def complete(monkeypatch):
    """What bash is offered for the last of these words."""

    def offer(*words):
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        monkeypatch.setenv("COMP_WORDS", "\n".join(["llmctl", *words]))
        lines = completion.Bash(cli, {}, "llmctl", "_LLMCTL_COMPLETE").complete().split("\n")
        return [line.removeprefix("plain,") for line in lines if line]

    return offer


@pytest.mark.parametrize(
    "words, offered",
    [
        (["finetune", "--recipe", "q"], ["qlora"]),
        (["--model", "llama", "dpo", "--recipe", ""], ["full", "lora"]),
        (["pretrain", "--recipe", "sm"], ["small"]),
        (["finetune", "--set", "train.learn"], ["train.learning_rate="]),
        (["dpo", "--set", "dpo.b"], ["dpo.beta="]),
        (["pretrain", "--set", "dpo.b"], []),
        (["plan", "--set", "data.seq"], ["data.seq_length="]),
        (["finetune", "--set", "train.schedule", "=", "co"], ["cosine", "constant"]),
        (["finetune", "--set", "train.schedule", "="], ["linear", "cosine", "constant"]),
        (["finetune", "--set", "data.shuffle", "=", "f"], ["false"]),
        (["finetune", "--set", "train.seed", "=", "4"], []),
        (["models", "qwen3"], ["qwen3"]),
    ],
)
def test_bash_is_offered(complete, words, offered):
    assert complete(*words) == offered


@pytest.mark.parametrize("words", [("finetune", "--recipe", "q"), ("plan", "--set", "data.")])
def test_nothing_heavy_is_imported(run_llmctl, words):
    environment = {"_LLMCTL_COMPLETE": "bash_complete", "COMP_CWORD": "3", "COMP_WORDS": "\n".join(["llmctl", *words])}
    done = run_llmctl(env=environment, probe=HEAVY)
    assert done.stdout.startswith("plain,") and done.stdout.endswith("HEAVY []\n"), done.stderr


def test_zsh_and_fish_get_descriptions(run_llmctl):
    words = {"COMP_WORDS": "llmctl finetune --set train.warmup_s", "COMP_CWORD": "3"}
    zsh = run_llmctl(env={"_LLMCTL_COMPLETE": "zsh_complete", **words})
    assert zsh.stdout.startswith("plain\ntrain.warmup_steps=\nSteps of linear warm-up; ")
    fish = run_llmctl(env={"_LLMCTL_COMPLETE": "fish_complete", **words, "COMP_CWORD": "train.warmup_s"})
    assert fish.stdout.startswith("plain,train.warmup_steps=\tSteps of linear warm-up; ")


def test_bash_completes_a_line(tmp_path):
    program = tmp_path / "llmctl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m llmctl "$@"\n')
    program.chmod(0o755)
    script = f"""
        eval "$(_LLMCTL_COMPLETE=bash_source {program})"
        compopt() {{ printf "%s " compopt "$@"; }}
        COMP_WORDS=(llmctl finetune --set train.schedule = lin) COMP_CWORD=5
        _llmctl_completion {program}; echo "${{COMPREPLY[*]}}"; COMPREPLY=()
        COMP_WORDS=(llmctl finetune --set train.grad_acc) COMP_CWORD=3
        _llmctl_completion {program}; echo "${{COMPREPLY[*]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "linear\ncompopt -o nospace train.grad_accumulation=\n", done.stderr
