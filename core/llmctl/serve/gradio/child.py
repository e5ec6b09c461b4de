"""The process that has Gradio: it ends with the server, however that ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from llmctl.errors import ConfigError
from llmctl.serve.model import UNBOUNDED, ServedModel
from llmctl.serve.server import listen_unix

END_SECONDS = 3.0
"""How long the process has to end by itself."""

QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False", "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
}  # fmt: skip
"""Variables with which Gradio asks nobody."""


SLIDERS = ("temperature", "top_k", "top_p", "repetition_penalty")
"""Parameters for which the page has sliders."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the page shows of the server.

    Attributes:
        names: The model and its adapters.
        keys: Whether an API key is needed.
        tokens: Most tokens of an answer.
        defaults: How answers are drawn unless a person says otherwise, by the names of the API.
    """

    names: tuple[str, ...]
    keys: bool
    tokens: int
    defaults: dict[str, float]


class Child:
    """The process, started when it is made. It has two sockets in a folder that only this user can open: one of the page,
    and one on which the server listens for it.

    Args:
        tls: Whether the server speaks HTTPS, on that socket too.

    Attributes:
        asked: Where the server listens for the process.
        page: Path of the socket of the page.

    Raises:
        ConfigError: There is no place for the sockets.
    """

    def __init__(self, tls: bool = False) -> None:
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="llmctl-"))
        except OSError as error:
            raise _no_place(error.strerror or str(error)) from None
        try:
            self.asked = listen_unix(str(self._folder / "server"))
        except ConfigError:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise _no_place(f"none can be made in {self._folder}") from None
        self.page = str(self._folder / "page")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llmctl.serve.gradio", str(self._folder), "https" if tls else "http"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, **QUIET, "GRADIO_TEMP_DIR": str(self._folder / "files")},
        )  # fmt: skip

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process, which notices that its input has ended."""
        self.asked.close()
        assert self._process.stdin
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def show(self, model: ServedModel, keys: bool) -> None:
        """Tells the process what it waits for: what the page shows.

        Args:
            model: The model.
            keys: Whether an API key is needed.
        """
        defaults = {
            name: value for name, value in model.defaults.values.items() if name in SLIDERS and value is not None
        }
        shown = Shown(names=model.names, keys=keys, tokens=model.max_positions or UNBOUNDED, defaults=defaults)
        assert self._process.stdin
        with contextlib.suppress(OSError):  # it has ended, which who opens the page is told
            self._process.stdin.write(json.dumps(asdict(shown)).encode() + b"\n")
            self._process.stdin.flush()


def _no_place(why: str) -> ConfigError:
    return ConfigError(f"--gradio makes two sockets in a folder of its own: {why}; name another folder with TMPDIR")
