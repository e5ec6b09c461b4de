"""The progress of a download, by what is in the cache: the libraries' own bars differ, and say nothing in pipes and logs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmctl.io.progress import Progress

INTERVAL = 0.5
"""Seconds between two looks."""
UNFINISHED = ".incomplete"
"""Ending of files that are being downloaded, or were when a download broke off."""


@contextmanager
def watched(title: str, total: int, folder: Path) -> Iterator[None]:
    """Shows how much of a download is there, while the block downloads.

    Args:
        title: What is downloaded.
        total: Bytes of all that is missing.
        folder: Where it arrives, among other files.
    """
    before, ended = size(folder, finished=True), threading.Event()
    with Progress(title, total) as progress:

        def look() -> None:
            seen = 0
            while not ended.wait(INTERVAL):
                there = size(folder) - before
                progress(max(0, there - seen))
                seen = max(seen, there)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def size(folder: Path, finished: bool = False) -> int:
    """Bytes of all files in a folder and those below; links are not followed.

    Args:
        folder: The folder; it need not exist.
        finished: Whether to leave out files that are not complete.
    """
    found = 0
    for path, _, names in os.walk(folder):
        for name in names:
            if finished and name.endswith(UNFINISHED):
                continue
            try:
                found += os.lstat(os.path.join(path, name)).st_size
            except OSError:  # It was moved in the meantime.
                continue
    return found
