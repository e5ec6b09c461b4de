"""Resuming a run: what ``run.json`` says of its beginning, and what may not change."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from llmctl import plugins
from llmctl.adapters import base_model
from llmctl.config import schema
from llmctl.errors import CheckpointError, ConfigError, FileError
from llmctl.hub.name import parse
from llmctl.jobs.job import CheckedJob
from llmctl.report.folder import read_info
from llmctl.train.run_info import run_info

MAY_CHANGE_ON_RESUME = (
    "output.",
    # Weights are compared themselves.
    "model.revision",
    "train.log_",
    "train.project",
    "train.run_name",
    "train.stats_every",
    "train.save",
    "train.eval_batch_size",
    "train.eval_before",
    "train.eval_iters",
    "train.test_iters",
    "train.recompute",
    "data.index_",
    "data.streaming",
    "parallel.",
)
"""Prefixes of the keys that may change when a run is resumed: they change no optimizer step."""


def describe(job: CheckedJob[Any], now: datetime | None) -> dict[str, Any]:
    """The content of ``run.json`` at the beginning of a run; ``now`` is what chat templates take for the present."""
    plugin = job.model.plugin
    return {
        "family": plugin.card.name,
        "task": job.command,
        "parameters": plugin.card.count(job.model.dims),
        "chosen": schema.changed_keys(job.config),
        **({"template_time": now.isoformat(timespec="seconds")} if now else {}),
        **({"base": job.base} if job.base else {}),
        **run_info(schema.to_dict(job.config), plugin.card.hash(), plugins.versions(plugin)),
    }


def read(job: CheckedJob[Any]) -> dict[str, Any]:
    """The ``run.json`` of the run to resume.

    Raises:
        CheckpointError: It has no configuration.
    """
    path = job.output / "run.json"
    try:
        info = read_info(path, required=True)
        if "config" in info:
            return info
        reason = f"{path} has no config"
    except FileError as error:
        reason = str(error)
    raise CheckpointError(
        f"the run cannot be resumed without the configuration that it began with: {reason}; restore the file, or start a new "
        "run with another output.dir or --overwrite"
    )


def template_time(info: Mapping[str, Any]) -> datetime | None:
    """What chat templates took for the present when the run began, in its local time; None if ``run.json`` does not say."""
    try:
        return datetime.fromisoformat(info["template_time"])
    except (KeyError, TypeError, ValueError):
        return None


def check_unchanged(job: CheckedJob[Any], info: Mapping[str, Any], start: Path) -> None:
    """Checks that configuration and model are those that the run began with, except for ``MAY_CHANGE_ON_RESUME``.

    Args:
        job: The run now.
        info: What `read` gave.
        start: The checkpoint to resume from, for messages.

    Raises:
        ConfigError: Names every key that differs, with both values.
    """
    before, now = (_flat(config) for config in (info["config"], schema.to_dict(job.config)))
    changed = [
        key for key in now if key in before and before[key] != now[key] and not key.startswith(MAY_CHANGE_ON_RESUME)
    ]
    if changed:
        lines = "\n  ".join(f"{key}: {before[key]!r} when the run began, {now[key]!r} now" for key in changed)
        raise ConfigError(
            f"{start} cannot be resumed with a changed configuration:\n  {lines}\nChange these back, or start a new run "
            "with another output.dir or --overwrite"
        )
    if "base" in info and job.base and not base_model.same(info["base"], job.base):
        raise ConfigError(
            f"{start} cannot be resumed: the weights in model.path={job.model.folder} are not those that the run began with; "
            f"{_way_back(info['base'])}, or start a new run with another output.dir or --overwrite"
        )


def _way_back(base: Mapping[str, Any]) -> str:
    """How to get the weights that a run began with."""
    name = parse(str(base.get("path", "")))
    return f"that commit is --set model.revision={name.revision}" if name and name.revision else "restore them"


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{part}.{key}": value for part, rows in config.items() for key, value in rows.items()}
