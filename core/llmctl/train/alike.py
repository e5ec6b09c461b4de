"""Whether the ranks of a run train the same: program, configuration and output folder are compared before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmctl._version import __version__
from llmctl.config import schema
from llmctl.errors import ConfigError
from llmctl.jobs.job import CheckedJob
from llmctl.jobs.paths import LOCK
from llmctl.parallel.machines.rendezvous import differences

MAY_DIFFER = ("output.resume", "output.overwrite")
"""Keys that only rank 0 follows."""


def named(job: CheckedJob[Any]) -> dict[str, str]:
    """What launchers of several machines must have alike, text by name."""
    return _flat(facts(job))


def facts(job: CheckedJob[Any]) -> dict[str, Any]:
    """What all ranks must have alike, of types that JSON has."""
    sections = schema.to_dict(job.config)
    keys = {f"{part}.{key}": repr(value) for part, rows in sections.items() for key, value in rows.items()}
    return {
        "llmctl": __version__,
        "family": job.model.plugin.card.hash(),
        "locked": (job.output / LOCK).is_file(),
        "config": {key: value for key, value in keys.items() if key not in MAY_DIFFER},
    }


def check(job: CheckedJob[Any], told: Mapping[str, Any]) -> None:
    """Checks that this rank has what rank 0 has.

    Args:
        job: The job of this rank.
        told: ``facts`` of rank 0.

    Raises:
        ConfigError: Names what differs.
    """
    own = facts(job)
    if apart := differences(_flat(told), _flat(own), "on rank 0", "here"):
        raise ConfigError(apart)
    if told["locked"] and not own["locked"]:
        raise ConfigError(
            f"output.dir={job.output} is not the folder of rank 0: all machines must share it; set a folder on a shared file system"
        )


def _flat(facts: Mapping[str, Any]) -> dict[str, str]:
    return {"llmctl": facts["llmctl"], "family": facts["family"], **facts["config"]}
