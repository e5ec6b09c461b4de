"""The adapters of the model, which may be loaded and unloaded while it is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from llmctl.errors import UnsupportedError
from llmctl.io.digest import sample_of_files
from llmctl.serve.problems import Problem, shown

if TYPE_CHECKING:
    from llmctl.infer.packed.model import PackedAdapter

T = TypeVar("T")


class Between(Protocol):
    """Calls a function with the engine between two of its steps."""

    def __call__(self, call: Callable[[Any], T], /) -> T:
        """Calls it and waits for its result."""


class Adapters:
    """Names of adapters, each with the place that the engine knows it by.

    Args:
        names: Those that the model was loaded with, in the order of their places.
        default: Place of the adapter of requests that name none; -1 = none.
        pack: Reads an adapter from a folder, by name and folder; None = none can be loaded.
        folders: Name -> folder of those that are not part of the model.
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        default: int = -1,
        pack: Callable[[str, Path], PackedAdapter] | None = None,
        folders: Mapping[str, Path] | None = None,
    ) -> None:
        self._places: dict[str, int] = {name: place for place, name in enumerate(names)}
        self._default, self._pack = default, pack
        self._samples = {name: sample_of_files(folder) for name, folder in (folders or {}).items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._places)

    def place(self, name: str) -> int | None:
        """The place of an adapter; None = there is none of this name."""
        return self._places.get(name)

    def sample(self, name: str) -> str:
        """What identifies the files of an adapter; empty = it is part of the model."""
        return self._samples.get(name, "")

    def load(self, name: str, folder: Path, between: Between) -> None:
        """Loads an adapter. Answers that are being generated are computed again up to where they were, and go on.

        Takes a while: not for the event loop.

        Args:
            name: By which requests will ask for it.
            folder: The adapter.
            between: Reaches the engine.

        Raises:
            Problem: There is one of this name, or the engine takes none at run time.
            LlmctlError: It cannot be read, or was trained on another model.
        """
        if name in self._places:
            raise Problem(f"there is an adapter {shown(name)} already; unload it first", 409, param="lora_name")
        if self._pack is None:
            raise Problem("adapters are loaded by the fused engine only", code="unsupported_field")
        adapter, sample = self._pack(name, folder), sample_of_files(folder)
        self._places[name] = between(_place(adapter, {*self._places.values(), self._default}))
        self._samples[name] = sample

    def unload(self, name: str) -> None:
        """Forgets an adapter; answers that use it may end. Its memory is free when the next one is loaded.

        Raises:
            Problem: There is none of this name.
        """
        if name not in self._places:
            raise Problem(
                f"there is no adapter {shown(name)}; there are: {', '.join(self.names) or 'none'}",
                404,
                param="lora_name",
            )
        del self._places[name]


def _place(adapter: PackedAdapter, kept: set[int]) -> Callable[[Any], int]:
    """Puts an adapter into a place that is free, or a new one, in the engine's thread."""

    def put(engine: Any) -> int:
        from dataclasses import replace

        executor = engine.executor
        if not hasattr(executor, "with_adapters"):
            raise UnsupportedError(
                "adapters can be loaded at run time with compiled kernels only; install paddle-llmctl-ops"
            )
        rows = [*executor.model.adapters]
        free = [place for place in range(len(rows)) if place not in kept and not engine.uses(place)]
        for place in free:
            rows[place] = replace(rows[place], deltas={})
        place = free[0] if free else len(rows)
        rows[place : place + 1] = [adapter]
        engine.replace_executor(executor.with_adapters(rows), len(rows))
        return place

    return put
