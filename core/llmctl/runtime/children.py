"""Processes that end with the one that started them, even if that is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

INTERVAL = 1.0
"""Seconds between two looks at the parent."""

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Ends this process within seconds once its parent is gone; called in the child, once, at its start.

    Linux ends it when the thread that started it is gone, whatever it is in: the start of paddle's connections lets no other
    thread of it run for minutes. Elsewhere a thread looks for the parent.

    Args:
        parent: The parent's process id, as the parent gave it: it may be gone already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(INTERVAL)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
