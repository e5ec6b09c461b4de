"""A background thread that runs one function at a time and re-raises its exception."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs functions in a background thread, one at a time."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Waits for the previous function, then starts this one.

        Raises:
            Exception: The previous function raised it.
        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name="background")
        self._thread.start()

    def wait(self) -> None:
        """Waits until the function is done.

        Raises:
            Exception: The function raised it; raised once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._failure = error
