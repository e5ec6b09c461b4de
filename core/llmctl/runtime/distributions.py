"""Entry points of the distributions on the path, read one distribution at a time: damaged metadata does not affect others.

``importlib.metadata.entry_points`` raises for all of them where one has a file that cannot be read.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple


class Entry(NamedTuple):
    """An entry point and the distribution that it comes from."""

    point: metadata.EntryPoint
    distribution: str
    version: str


def entry_points() -> Iterator[Entry]:
    """All entry points; a distribution whose metadata is damaged is named in a warning and skipped."""
    for distribution in metadata.distributions():
        try:
            points = [point for point in distribution.entry_points if point.group.startswith("llmctl.")]
            name, version = (distribution.metadata["Name"], distribution.version) if points else ("", "")
            found = [Entry(point, str(name or "unknown"), str(version or "unknown")) for point in points if point.value]
        except Exception as error:  # whatever a damaged file makes the library raise
            where = getattr(distribution, "_path", "a distribution")
            warnings.warn(
                f"the metadata of {where} is damaged and is skipped ({type(error).__name__}); reinstall or remove it",
                UserWarning,
                stacklevel=2,
            )
            continue
        yield from found


def version_of(name: str) -> str:
    """The version of a distribution; empty where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
