"""The writers of ``train.log_to``: of scalars in files, or of a service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmctl.train.callbacks.scalar_writers import ScalarWriter
from llmctl.train.callbacks.tracker_writer import RunFacts, TrackerWriter
from llmctl.train.callbacks.trackers import TRACKERS


def writers_of(names: Sequence[str], folder: Path, facts: RunFacts) -> list[ScalarWriter | TrackerWriter]:
    """The writers of these values of ``train.log_to``.

    Args:
        names: The values.
        folder: The output folder.
        facts: What services are told of the run.
    """
    return [
        TrackerWriter(name, folder, facts) if name in TRACKERS else ScalarWriter(name, folder)
        for name in dict.fromkeys(names)
        if name != "none"
    ]
