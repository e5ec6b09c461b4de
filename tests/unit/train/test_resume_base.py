"""Resuming with other weights than those that a run began with."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from llmctl.config import schema
from llmctl.config.finetune import FinetuneConfig
from llmctl.errors import ConfigError
from llmctl.train.resume import check_unchanged

COMMIT = "0123456789" * 4


@pytest.mark.parametrize(
    "path, remedy",
    [(f"owner/name@{COMMIT}", f"that commit is --set model.revision={COMMIT}"), ("/a/b", "restore them")],
)
def test_the_way_back_is_the_commit_or_the_files(path, remedy):
    config = FinetuneConfig()
    config.model.revision = "main"
    job = SimpleNamespace(
        config=config, base={"shapes_hash": "1", "values_hash": "3"}, model=SimpleNamespace(folder=path)
    )
    info = {"config": schema.to_dict(FinetuneConfig()), "base": {"path": path, "shapes_hash": "1", "values_hash": "2"}}
    with pytest.raises(ConfigError, match=f"not those that the run began with; {remedy}, or start a new run"):
        check_unchanged(job, info, Path("step-1"))
    check_unchanged(job, {**info, "base": {**info["base"], "values_hash": "3"}}, Path("step-1"))
