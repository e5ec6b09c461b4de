"""A process at a pseudo-terminal."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time


class Terminal:
    """Runs a command at a terminal of 80 columns and 24 rows.

    Attributes:
        text: What was printed since the last ``until``.
    """

    def __init__(self, words, env=None, cwd=None):
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            list(map(str, words)), stdin=slave, stdout=slave, stderr=slave, close_fds=True, cwd=cwd,
            env={**os.environ, "TERM": "xterm", **(env or {})}, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - the child makes it its terminal
        )  # fmt: skip
        os.close(slave)
        self.text = ""

    def until(self, part, seconds=60, again=""):
        """Waits for a text; returns all that was printed before it. Each second without output, ``again`` is typed.

        A signal that comes just before readline waits for a key is seen only with the next one.
        """
        end = time.monotonic() + seconds
        while part not in self.text:
            left = end - time.monotonic()
            assert left > 0, f"{part!r} is not in {self.text!r}"
            if not self._read(min(left, 1.0) if again else left):
                assert again, f"ended without {part!r}: {self.text!r}"
                self.send(again)
        before, self.text = self.text.split(part, 1)
        return before

    def send(self, text):
        """Types."""
        os.write(self._master, text.encode())

    def end(self, seconds=60):
        """Waits for the end; returns the exit code and what was printed."""
        while self._read(seconds):
            pass
        os.close(self._master)
        return self.process.wait(seconds), self.text

    def _read(self, seconds):
        ready = select.select([self._master], [], [], max(0.0, seconds))[0]
        try:
            found = os.read(self._master, 65536) if ready else b""
        except OSError:  # all of it is read and the process has closed the terminal
            return False
        self.text += found.decode(errors="replace")
        return bool(found)
