"""``llmctl bench comm``: what it measures, the file for plans, mistakes."""

import json
import subprocess
import sys

import pytest
from kit.model_cli import llmctl

from llmctl.parallel.costs.hardware import calibrated, find


@pytest.mark.parallel
def test_every_operation_is_measured_and_plans_can_read_it(tmp_path):
    file = tmp_path / "comm.json"
    words = ["bench", "comm", "--devices", "2", "--largest", "32KiB", "--rounds", "1", "--output", str(file)]
    done = subprocess.run([sys.executable, "-m", "llmctl", *words], capture_output=True, text=True, check=True)
    content = json.loads(file.read_text())
    ops = {"all_reduce", "all_gather", "reduce_scatter", "all_to_all"}
    assert {(one["op"], one["size"]) for one in content["samples"]} == {
        (op, size) for op in ops for size in (4096, 32768)
    }
    assert all(one["seconds"] > 0 for one in content["samples"]) and set(content["links"]) == ops
    assert all(op in done.stdout for op in ops) and "us a step" in done.stdout
    device = calibrated(find("h100-80"), file)
    assert device.inside.bandwidth < 450e9 and device.between == find("h100-80").between


def test_one_device_and_tiny_tensors_are_refused():
    assert "measuring needs two devices or more; give --devices N" in llmctl("bench", "comm", code=2)[1]
    assert (
        "--largest 5: give at least 4096 bytes"
        in llmctl("bench", "comm", "--devices", "2", "--largest", "5", code=2)[1]
    )
    assert "--model has no effect on llmctl bench comm" in llmctl("--model", "llama", "bench", "comm", code=2)[1]
