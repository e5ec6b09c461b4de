"""Every command without the optional distribution ``paddle-llmctl-ops``: the same answers, and one line that says what is missing.

All commands run in one process in which ``llmctl_ops`` cannot be imported.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from kit.model_cli import STARTER, llmctl

from llmctl import runtime
from llmctl.data.corpus.indexed import new_corpus
from llmctl.infer.executors import native
from llmctl.runtime import operators

ASK = ["--prompt", "Deny this: Tom has a red kite.", "--max-new-tokens", "10", "--no-stream"]
MISSING = "paddle-llmctl-ops is not installed"
PROGRAM = """
import contextlib, io, json, os, sys
sys.modules["llmctl_ops"] = None
from llmctl.runtime import operators
from llmctl.cli import main
for words, choice in json.load(sys.stdin):
    os.environ["LLMCTL_OPS"], operators._noted = choice, False
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


def without_operators(commands):
    """Exit code, output and errors of each command, by name; a command is its words and LLMCTL_OPS."""
    given = json.dumps([[list(map(str, words)), choice] for words, choice in commands.values()])
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = dict(zip(commands, map(json.loads, done.stdout.splitlines()), strict=True))
    for name, (_, out, err) in found.items():
        assert "Traceback" not in out + err, (name, out + err)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("without")
    small = {"src_length": 64, "max_length": 128}
    model, data = {"path": str(STARTER)}, {"train": str(STARTER.parent / "data" / "dev.jsonl"), **small}
    pairs = [{"src": ["a"], "tgt": [], "response": ["yes", "no"], "sort": [1, 0]}] * 4
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    with new_corpus(folder / "corpus", np.uint16) as writer:
        writer.add(np.arange(200) % 90, np.full(20, 10))
    configs = {
        "finetune": {"model": model, "data": data},
        "dpo": {
            "model": model,
            "data": {"train": str(folder / "pairs.jsonl"), "max_prompt_length": 32, "max_length": 64},
        },
        "pretrain": {
            "model": {"size": "tiny", "tokenizer": str(STARTER)},
            "data": {"corpora": str(folder / "corpus"), "split": "1", "seq_length": 8},
        },
    }
    train = {"max_steps": 1, "batch_size": 2}
    for name, config in configs.items():
        output = {"dir": str(folder / name)}
        (folder / f"{name}.yaml").write_text(json.dumps({**config, "train": train, "output": output}))
    engines = {e: (["generate", STARTER, "--engine", e, *ASK], "") for e in ("auto", "dynamic", "fused")}
    trainings = {name: (["--model", "llama", name, folder / f"{name}.yaml"], "") for name in configs}
    return without_operators(
        {
            **engines,
            "auto, on purpose": (["generate", STARTER, *ASK], "reference"),
            "dynamic, on purpose": (["generate", STARTER, "--engine", "dynamic", *ASK], "reference"),
            "sampled": (["generate", STARTER, "--engine", "fused", *ASK, "--sample", "--top-p", "0.9", "--seed", "3"], ""),
            "export a program": (["export", STARTER, "--output", folder / "program"], ""),
            "static": (["generate", folder / "program", *ASK], ""),
            "export packed": (["export", STARTER, "--engine", "fused", "--weights", "int8", "--output", folder / "int8"], ""),
            "packed": (["generate", folder / "int8", *ASK], ""),
            "beams": (["generate", folder / "int8", *ASK, "--beams", "2", "--kv", "int8"], ""),
            "bench": (["bench", STARTER, "--rounds", "1", "--new-tokens", "4", "--prompt-tokens", "8"], ""),
            **trainings,
            "plan": (["--model", "llama", "plan", folder / "finetune.yaml"], ""),
            "doctor": (["ops", "doctor"], ""),
        }
    )  # fmt: skip


def test_every_command_works(found):
    assert {name for name, (code, *_) in found.items() if code} == set()
    assert "pip install paddle-llmctl-ops" in found["doctor"][1]


def test_every_engine_answers_as_with_compiled_operators(found):
    expected = llmctl("generate", STARTER, *ASK)[0]
    assert len(expected) > 20
    for engine in ("auto", "dynamic", "fused", "static", "auto, on purpose", "dynamic, on purpose"):
        assert found[engine][1] == expected, engine
    sampled = llmctl("generate", STARTER, *ASK, "--sample", "--top-p", "0.9", "--seed", "3")[0]
    assert found["sampled"][1] == sampled != expected
    assert found["packed"][1].strip() and found["beams"][1].strip()


@pytest.mark.parametrize("name", ["auto", "dynamic", "fused", "packed", "bench"])
def test_one_line_of_a_run_says_what_is_missing_and_how_to_install_it(found, name):
    _, out, err = found[name]
    assert MISSING not in out
    (line,) = err.splitlines()
    assert MISSING in line and "which are slower" in line and line.count("pip install paddle-llmctl-ops") == 1


@pytest.mark.parametrize("name", ["finetune", "dpo", "pretrain"])
def test_one_line_of_a_training_says_what_is_missing(found, name):
    _, out, err = found[name]
    assert MISSING not in err
    assert [line for line in out.splitlines() if MISSING in line] == [operators.MISSING]


def test_nothing_is_said_where_operators_were_turned_off_or_change_nothing(found):
    reason = "there are no compiled kernels: LLMCTL_OPS=reference; --engine fused runs it by paddle's operations"
    assert found["auto, on purpose"][2] == f"engine: dynamic ({reason})\n"
    assert found["dynamic, on purpose"][2] == found["static"][2] == ""
    for name in ("export a program", "export packed", "plan"):
        assert MISSING not in found[name][1] + found[name][2]


@pytest.fixture
def absent(monkeypatch):
    monkeypatch.setattr(operators, "_noted", False)
    monkeypatch.setattr(operators, "installed", lambda: False)
    monkeypatch.setattr(native, "library", None)
    monkeypatch.setattr(native, "FAILURE", operators.MISSING, raising=False)
    monkeypatch.delenv("LLMCTL_OPS", raising=False)


@pytest.mark.usefixtures("absent")
def test_a_process_says_it_once_and_on_a_gpu_never(monkeypatch):
    monkeypatch.setattr(runtime, "device", lambda: "gpu")
    assert operators.note() == ""
    monkeypatch.setattr(runtime, "device", lambda: "cpu")
    assert operators.note() == operators.MISSING and operators.note() == ""


@pytest.mark.usefixtures("absent")
def test_without_the_distribution_there_are_no_kernels_and_the_reason_is_told(monkeypatch):
    assert not native.available() and native.missing() == operators.MISSING and native.sampler(9) is None
    monkeypatch.setenv("LLMCTL_OPS", "reference")
    assert native.missing() == "LLMCTL_OPS=reference" and operators.note() == ""


def test_kernels_that_read_another_layout_are_not_used(monkeypatch):
    if not native.available():
        pytest.skip("no compiled kernels here")
    monkeypatch.setattr(native.linear, "LAYOUT", native.LAYOUT + 1)
    assert not native.available() and "layout" in native.missing()
