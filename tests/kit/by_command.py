"""A short fine-tuning by the command, on some devices, and whether two have written the same but for rounding."""

import json
from pathlib import Path

import numpy as np
import pytest
from kit.pages import quick
from kit.readme import STARTER
from kit.started import LLMCTL, ended, start
from safetensors.numpy import load_file

SETTINGS = {
    "model.path": STARTER / "model",
    "data.train": STARTER / "data" / "dev.jsonl",
    "data.dev": STARTER / "data" / "dev.jsonl",
    "data.max_length": 160,
    "data.packing": "best-fit",
    "train.max_steps": 3,
    "train.batch_size": 2,
    "train.grad_accumulation": 4,
    "train.eval_every": 2,
    "train.eval_batch_size": 16,
    "train.save_every": 2,
    "train.log_every": 1,
    "train.max_grad_norm": 0.5,
    # Where a gradient is all rounding, Adam divides it by itself.
    "train.adam_eps": 1e-3,
    "output.samples": 1,
}


def finetune(output, devices=None, **settings):
    """The output folder of a run that must succeed.

    Args:
        output: The folder.
        devices: What ``--devices`` gets; None = one process that is no rank.
        **settings: More settings, with ``__`` for the dot.
    """
    options = [] if devices is None else ["--devices", devices]
    own = {key.replace("__", "."): value for key, value in settings.items()}
    words = ["--model", "llama", "finetune", "--output", output, *options, *quick({**SETTINGS, **own})]
    (code,), (said,) = ended(start([*LLMCTL, *words]), seconds=400)
    assert code == 0 and "Traceback" not in said, said
    return Path(output)


def logged(output):
    """What a run logged, without times and memory."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if "second" not in key and key != "peak_memory"} for row in rows]


def written(folder):
    """All tensors in a folder, by file and name."""
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{file.relative_to(folder)}: {name}": value for file in files for name, value in load_file(file).items()}


def assert_same(one, other, tolerance):
    """Everything that two runs have written is the same but for rounding."""
    for row, expected in zip(logged(other), logged(one), strict=True):
        assert row == pytest.approx(expected, rel=tolerance, abs=tolerance)
    found, expected = written(other), written(one)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance, err_msg=name)
    before, after = (json.loads((run / "run.json").read_text()) for run in (one, other))
    assert before["after"]["samples"] == after["after"]["samples"]
    names = [{path.name for path in run.iterdir()} - {"logs"} for run in (one, other)]
    assert names[0] == names[1]
