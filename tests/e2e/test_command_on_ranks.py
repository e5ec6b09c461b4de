"""The command on several ranks, in float32, by its launcher: the tensors and losses of one process."""

import json
import subprocess

import pytest
from kit.by_command import assert_same
from kit.pages import quick
from kit.short_runs import job_of, write_data
from kit.started import LLMCTL

from llmctl.config import schema


@pytest.mark.parallel
def test_the_command_writes_the_tensors_of_one_process_and_notes_dropout(tmp_path):
    """In float32, by the launcher; dropout is noted and does not end the run.

    A larger epsilon than usual: where a gradient is all rounding, Adam divides it by itself.
    """
    data = tmp_path / "data"
    data.mkdir()
    write_data(data)
    degrees = {1: {}, 2: {"pipeline": 2}, 4: {"tensor": 2, "pipeline": 2}}
    for name, devices in (("full", 1), ("full", 4), ("dropout", 2)):
        output = tmp_path / f"{name}{devices}"
        job = job_of(name, data, output, {}, "float32")
        config = tmp_path / f"{name}{devices}.yaml"
        config.write_text(json.dumps(schema.to_dict(job.config)))
        options = quick({"train.adam_eps": 1e-3, **{f"parallel.{key}": n for key, n in degrees[devices].items()}})
        command = ["--model", "llama", "finetune", str(config), "--devices", str(devices), *options]
        done = subprocess.run([*LLMCTL, *command], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        noted = json.loads((output / "run.json").read_text()).get("dropout", "")
        assert ("each of the 2 ranks" in noted) == (name == "dropout")
    assert_same(tmp_path / "full1", tmp_path / "full4", 1e-5)
