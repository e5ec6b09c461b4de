"""Runs that are cut off, for tests of continuing them: a crash at the first checkpoint, losses, finished runs by name."""

import json

import pytest

from llmctl.train import trainer
from llmctl.train.callbacks.base import Callback


class Crash(Callback):
    """Ends a run when its first checkpoint is due and written."""

    def on_save(self, step):
        raise RuntimeError("power cut")


def losses(output):
    """Steps and losses of a run."""
    return [(row["step"], row["loss"]) for row in map(json.loads, (output / "metrics.jsonl").read_text().splitlines())]


def finished(folder, job, methods):
    """Finished runs by the name of a method, each made once: name -> output folder."""
    made = {}

    def get(name):
        if name not in made:
            output = folder / name
            trainer.run(job(output, methods[name]))
            made[name] = output
        return made[name]

    return get


def check_continues(whole, job, method, output):
    """A run that is cut off and continued gives the losses and the adapter's bytes of the whole one."""
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.run(job(output, method), [Crash()])
    trainer.run(job(output, method, resume=True))
    assert losses(output) == losses(whole)
    file = "model/adapter_model.safetensors"
    assert (output / file).read_bytes() == (whole / file).read_bytes()
