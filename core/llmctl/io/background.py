"""One piece of work at a time beside training, whose failure is not lost."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs a function in a thread; the next one, or ``wait``, waits for it."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begins once what was begun before is done.

        Raises:
            Exception: What that raised.
        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name="background")
        self._thread.start()

    def wait(self) -> None:
        """Until what was begun is done.

        Raises:
            Exception: What it raised; once.
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
