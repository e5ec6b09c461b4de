"""What ranks compare with rank 0 before the first step."""

from types import SimpleNamespace

import pytest

from llmctl import plugins
from llmctl.config import schema
from llmctl.config.finetune import FinetuneConfig
from llmctl.errors import ConfigError
from llmctl.jobs.paths import LOCK
from llmctl.train import alike


def _job(output, **train):
    config = schema.build(FinetuneConfig, {"train": train})
    return SimpleNamespace(config=config, model=SimpleNamespace(plugin=plugins.load("llama")), output=output)


def test_a_rank_on_another_machine_needs_the_output_folder_of_rank_0(tmp_path):
    shared, own = tmp_path / "shared", tmp_path / "own"
    for folder in (shared, own):
        folder.mkdir()
    (shared / LOCK).touch()
    told = alike.facts(_job(shared))
    alike.check(_job(shared), told)
    with pytest.raises(
        ConfigError, match=r"own is not the folder of rank 0: all machines must share it; set a folder on"
    ):
        alike.check(_job(own), told)


def test_keys_with_other_values_are_named(tmp_path):
    told = alike.facts(_job(tmp_path, seed=1))
    with pytest.raises(ConfigError, match=r"train\.seed: 1 on rank 0, 2 here"):
        alike.check(_job(tmp_path, seed=2), told)
