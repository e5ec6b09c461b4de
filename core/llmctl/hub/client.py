"""What a hub's library does for us."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llmctl.errors import CheckpointError, LlmctlError
from llmctl.hub.name import HubName


@dataclass(frozen=True)
class Listing:
    """What a repository holds.

    Attributes:
        commit: The commit of the revision; empty where the hub does not say.
        sizes: Name of a file -> its size in bytes.
    """

    commit: str
    sizes: Mapping[str, int]


class Unreachable(LlmctlError):
    """The hub cannot be reached, or must not be; the message says why."""


class Refused(CheckpointError):
    """The hub has no such model, or only for others; the message says what to do."""


class Client(Protocol):
    """A hub, by way of its library. Every method raises ``LlmctlError`` for what a user can fix.

    Attributes:
        title: Its name.
        cache_variable: The environment variable that names another cache.
    """

    title: str
    cache_variable: str

    @property
    def offline(self) -> bool:
        """Whether the user forbids downloads."""
        ...

    @property
    def cache(self) -> Path:
        """The folder that models are downloaded into."""
        ...

    def listing(self, name: HubName) -> Listing:
        """The files of a model; raises ``Unreachable`` or ``Refused``."""
        ...

    def fetch(self, name: HubName, wanted: Sequence[str]) -> Path:
        """Downloads files that are not in the cache; returns the folder of all; raises as ``listing``."""
        ...

    def store(self, name: HubName) -> Path:
        """The folder below which the files of a model arrive."""
        ...

    def cached(self, name: HubName) -> Path | None:
        """The folder of what has been downloaded, complete or not; asks no server."""
        ...

    def elsewhere(self, name: HubName, folder: str) -> str:
        """The command that downloads a model into a folder on another machine."""
        ...
