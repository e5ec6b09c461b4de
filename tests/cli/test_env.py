"""``llmctl env``: what a report of a problem must say of a machine."""

import json
import os
import re
from pathlib import Path

import pytest

from llmctl.runtime import machine

HEAVY = "print('HEAVY', [m for m in ('paddle', 'numpy', 'rich') if m in sys.modules])"
CARDS = "Some GPU, 81559 MiB, 570.86.15, 9.0\nOther GPU, 24564 MiB, 570.86.15, 8.9\n"


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Puts an ``nvidia-smi`` that prints this and exits so on the path."""

    def make(text, code=0):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\nexit {code}\n")
        (folder / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return make


def test_json_has_machine_versions_and_paths(run_llmctl, tmp_path):
    done = run_llmctl("env", "--json", env={"HF_HOME": str(tmp_path / "hf")})
    facts = json.loads(done.stdout)
    total = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
    assert facts["machine"]["memory"]["total"] == total and 0 < facts["machine"]["memory"]["free"] <= total
    assert facts["machine"]["processor"]["model"]
    assert facts["versions"]["numpy"] and facts["versions"]["paddlepaddle-gpu"] and facts["versions"]["huggingface_hub"]
    assert facts["paths"]["models (HF)"].startswith(f"{tmp_path / 'hf' / 'hub'} (not there yet, ")
    assert facts["warnings"] == []


def test_a_foreign_distribution_is_named_in_both_forms(run_llmctl, tmp_path):
    info = tmp_path / "llmctl-0.1.8.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llmctl\nVersion: 0.1.8\n")
    path = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    (warning,) = json.loads(run_llmctl("env", "--json", env=path).stdout)["warnings"]
    assert warning.startswith("the distribution llmctl 0.1.8 is another project's; ours is paddle-llmctl")
    assert f"warning: {warning}" in run_llmctl("env", env=path).stderr


def test_gpus_are_listed_with_their_drivers(run_llmctl, tool):
    tool(CARDS)
    done = run_llmctl("env", probe=HEAVY)
    assert "  gpu 0              Some GPU, 81559 MiB, driver 570.86.15, compute capability 9.0\n" in done.stdout
    assert "  gpu 1              Other GPU" in done.stdout and "HEAVY []" in done.stdout


def test_a_driver_that_fails_is_said(tool, monkeypatch):
    tool("NVIDIA-SMI has failed because it could not communicate with the driver.\n", 9)
    assert machine.gpus() == ([], "unknown: nvidia-smi fails: NVIDIA-SMI has failed because it could not communicate with the driver.")  # fmt: skip
    tool("")
    assert machine.gpus() == ([], "none: nvidia-smi lists none")
    monkeypatch.setenv("PATH", "/nowhere")
    assert machine.gpus() == ([], "none: there is no nvidia-smi, so no driver of NVIDIA")
