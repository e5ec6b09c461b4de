"""Processes that end with the one that started them, even if that is killed."""

from __future__ import annotations

import os
import threading
import time

INTERVAL = 1.0
"""Seconds between two looks at the parent."""


def end_with_parent(parent: int) -> None:
    """Ends this process within seconds once its parent is gone; called in the child, once, at its start.

    Args:
        parent: The parent's process id, as the parent gave it: it may be gone already.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(INTERVAL)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
