"""The Hugging Face Hub, by way of ``huggingface_hub``: cache, endpoint, tokens and offline mode are the library's."""

from __future__ import annotations

import glob
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from llmctl.errors import CheckpointError, FileError, require
from llmctl.hub import files
from llmctl.hub.client import Listing, Refused, Unreachable
from llmctl.hub.messages import first_line, is_disk_full, no_space
from llmctl.hub.name import HubName
from llmctl.io.gguf_files import ENDING

TRANSPORTS = ("httpx", "httpx2", "httpcore", "requests", "urllib3")
"""Packages whose errors are of the connection; which of them it is depends on the release of the library."""

BROKEN_OFF = (
    "ChunkedEncodingError",
    "RemoteProtocolError",
    "ReadError",
    "ReadTimeout",
    "IncompleteRead",
    "ProtocolError",
)
"""Errors of a connection that broke off in the middle of a file."""
PAUSES = (0.0, 1.0, 4.0)
"""Seconds to wait before each further attempt."""


@contextmanager
def _without_bars() -> Iterator[None]:
    """Leaves out the library's progress bars."""
    utils: Any = import_module("huggingface_hub.utils")
    if utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


class HuggingFace:
    """See ``client.Client``."""

    title = "the Hugging Face Hub"
    cache_variable = "HF_HOME"

    def __init__(self, purpose: str) -> None:
        self._library: Any = require("huggingface_hub", "hub", purpose)
        from huggingface_hub import constants

        self._constants: Any = constants

    @property
    def offline(self) -> bool:
        return bool(self._constants.HF_HUB_OFFLINE)

    @property
    def cache(self) -> Path:
        return Path(self._constants.HF_HUB_CACHE)

    def listing(self, name: HubName) -> Listing:
        with self._explained(name):
            info = self._library.HfApi().model_info(name.repo, revision=name.revision or None, files_metadata=True)
        return Listing(info.sha or "", {file.rfilename: file.size or 0 for file in info.siblings or ()})

    def fetch(self, name: HubName, wanted: Sequence[str]) -> Path:
        patterns = [glob.escape(file) for file in wanted]
        with self._explained(name), _without_bars():
            for wait in (*PAUSES, None):
                try:
                    return Path(
                        self._library.snapshot_download(
                            name.repo, revision=name.revision or None, allow_patterns=patterns
                        )
                    )
                except Exception as error:
                    # Only some releases of the library try again by themselves; all continue where it broke off.
                    if wait is None or type(error).__name__ not in BROKEN_OFF:
                        raise
                    time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def store(self, name: HubName) -> Path:
        return self.cache / f"models--{name.repo.replace('/', '--')}"

    def cached(self, name: HubName) -> Path | None:
        try:
            # Releases differ in what they say of an incomplete snapshot; a file that every model has is enough to find it.
            path = self._library.try_to_load_from_cache(name.repo, "config.json", revision=name.revision or None)
            path = path if isinstance(path, str) else self._library.try_to_load_from_cache(
                name.repo, "adapter_config.json", revision=name.revision or None
            )  # fmt: skip
        except ValueError:
            return None
        return Path(path).parent if isinstance(path, str) else self._snapshot(name)

    def _snapshot(self, name: HubName) -> Path | None:
        """The folder of a revision with GGUF files, which have names of their own, so that the library cannot be asked for one."""
        revision = name.revision or "main"
        ref = self.store(name) / "refs" / revision
        folder = self.store(name) / "snapshots" / (ref.read_text() if ref.is_file() else revision)
        return folder if any(folder.rglob(f"*{ENDING}")) else None

    def elsewhere(self, name: HubName, folder: str) -> str:
        revision = f" --revision {name.revision}" if name.revision else ""
        return f"hf download {name.repo}{revision}{files.including(name.choice)} --local-dir {folder}"

    @contextmanager
    def _explained(self, name: HubName) -> Iterator[None]:
        """Turns errors of the library into ours."""
        from huggingface_hub import errors

        where = f"{self._constants.ENDPOINT}/{name.repo}"
        try:
            yield
        except errors.GatedRepoError as error:
            raise Refused(
                f"{name} is gated: accept its conditions at {where}, then log in with hf auth login, or set HF_TOKEN to a "
                "token of that account"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise Refused(
                f"{self.title} has no model {name.repo} that you may read ({where}); check its name, or, if it is "
                "private, log in with hf auth login or set HF_TOKEN"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise CheckpointError(
                f"{name.repo} has no revision {name.revision}; its branches, tags and commits: {where}/tree/main"
            ) from error
        except errors.HFValidationError as error:
            raise CheckpointError(f"{name} is not the name of a model: {error}") from error
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError) as error:
            raise self._unreachable(error) from error
        except errors.HfHubHTTPError as error:
            status = getattr(error.response, "status_code", 0)
            if status in (401, 403):
                raise Refused(
                    f"{self.title} refuses {name.repo} ({status}); check the token: hf auth whoami, HF_TOKEN"
                ) from error
            raise Unreachable(f"{where} answers {status}: {first_line(error)}") from error
        except Exception as error:
            if is_disk_full(error):
                raise FileError(no_space(name, self.cache, self.cache_variable)) from error
            if type(error).__module__.partition(".")[0] in TRANSPORTS:
                raise self._unreachable(error) from error
            if isinstance(error, OSError):
                raise FileError(f"{name} cannot be downloaded into {self.cache}: {error}") from error
            raise

    def _unreachable(self, error: BaseException) -> Unreachable:
        if self.offline:
            return Unreachable("HF_HUB_OFFLINE is set")
        what = "breaks off" if type(error).__name__ in BROKEN_OFF else "cannot be reached"
        kept = "; what has been downloaded is kept, so try again" if what == "breaks off" else ""
        return Unreachable(f"{self._constants.ENDPOINT} {what} ({first_line(error.__cause__ or error)}){kept}")
