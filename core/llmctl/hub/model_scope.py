"""ModelScope, by way of the package ``modelscope``: cache, endpoint and tokens are the library's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from llmctl.errors import FileError, require
from llmctl.hub import files
from llmctl.hub.client import Listing, Refused, Unreachable
from llmctl.hub.messages import first_line, is_disk_full, no_space
from llmctl.hub.name import HubName

VARIABLE = "TQDM_DISABLE"
"""What the library's progress bars read when they are imported."""
OFFLINE = "HF_HUB_OFFLINE"
"""The variable that forbids downloads; ModelScope's library has none of its own."""


@contextmanager
def _without_bars() -> Iterator[None]:
    """Imports of the block show no progress bars later."""
    if VARIABLE in os.environ:
        yield
        return
    os.environ[VARIABLE] = "1"
    try:
        with suppress(ImportError):
            import_module("tqdm.auto")
        yield
    finally:
        del os.environ[VARIABLE]


class ModelScope:
    """See ``client.Client``."""

    title = "ModelScope"
    cache_variable = "MODELSCOPE_CACHE"

    def __init__(self, purpose: str) -> None:
        with _without_bars():
            require("modelscope", "modelscope", purpose)

    @property
    def offline(self) -> bool:
        return os.environ.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE")

    @property
    def cache(self) -> Path:
        return Path(os.environ.get("MODELSCOPE_CACHE") or Path.home() / ".cache" / "modelscope").expanduser()

    def listing(self, name: HubName) -> Listing:
        from modelscope.hub.api import HubApi

        with self._explained(name):
            rows = HubApi().get_model_files(name.repo, revision=name.revision or None, recursive=False)
        return Listing("", {str(row["Path"]): int(row.get("Size") or 0) for row in rows})

    def fetch(self, name: HubName, wanted: Sequence[str]) -> Path:
        with self._explained(name):
            return self._snapshot(name, allow_patterns=list(wanted))

    def store(self, name: HubName) -> Path:
        return self.cache / "models" / name.repo.replace("/", "--")

    def cached(self, name: HubName) -> Path | None:
        try:
            return self._snapshot(name, local_files_only=True)
        except Exception:
            # Releases differ in the error for what is not in the cache.
            return None

    def elsewhere(self, name: HubName, folder: str) -> str:
        revision = f" --revision {name.revision}" if name.revision else ""
        return f"modelscope download --model {name.repo}{revision}{files.including(name.choice)} --local_dir {folder}"

    def _snapshot(self, name: HubName, **options: Any) -> Path:
        from modelscope.hub.snapshot_download import snapshot_download

        return Path(snapshot_download(name.repo, revision=name.revision or None, **options))

    @contextmanager
    def _explained(self, name: HubName) -> Iterator[None]:
        """Turns errors of the library into ours."""
        if self.offline:
            raise Unreachable(f"{OFFLINE} is set")
        try:
            yield
        except Exception as error:
            status = _status(error)
            if is_disk_full(error):
                raise FileError(no_space(name, self.cache, self.cache_variable)) from error
            if status in (401, 403):
                raise Refused(
                    f"{self.title} refuses {name.repo} ({status}); log in with modelscope login, or set MODELSCOPE_API_TOKEN"
                ) from error
            if status == 404:
                what = f"{name.repo} with a revision {name.revision}" if name.revision else name.repo
                raise Refused(
                    f"{self.title} has no model {what} that you may read: {first_line(error)}; check name and revision"
                ) from error
            if isinstance(error, OSError) or type(error).__module__.startswith("modelscope"):
                raise Unreachable(f"{self.title} cannot be reached ({first_line(error)})") from error
            raise


def _status(error: BaseException) -> int:
    """The HTTP status that an error or its cause carries; 0 = none."""
    chain: BaseException | None = error
    while chain is not None:
        status = getattr(getattr(chain, "response", None), "status_code", None) or getattr(chain, "status_code", None)
        if isinstance(status, int):
            return status
        chain = chain.__cause__
    return 0
