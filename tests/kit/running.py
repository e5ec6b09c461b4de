"""``llmctl serve`` with the starter model as a process of its own on the loopback interface."""

import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import httpx
from kit.paths import STARTER


class Server:
    """A running server.

    Args:
        words: Options of the command.
        folder: The model.

    Attributes:
        url: Its address.
        log: Lines that it has written.
    """

    def __init__(self, *words, folder=STARTER / "model"):
        command = [sys.executable, "-m", "llmctl", "serve", folder, "--port", "0", "--name", "starter", *words]
        self.process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
        self.log = []
        for line in self.process.stderr:
            self.log.append(line)
            if "serving" in line:
                found = re.search(r"https?://127\.0\.0\.1:(\d+)", line)
                self.port, self.url = (int(found[1]), found[0]) if found else (0, "")
                break
        else:
            raise AssertionError(f"exit code {self.process.wait()}: {self.log}")
        # What nobody reads would stop the server.
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self._reader.start()

    def end(self):
        """The exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        self._reader.join(10)
        return code

    def metrics(self):
        rows = (line.rsplit(" ", 1) for line in httpx.get(f"{self.url}/metrics").text.splitlines() if line[0] != "#")
        return {name.removeprefix("llmctl_"): float(value) for name, value in rows}


@contextmanager
def running(*words, folder=STARTER / "model"):
    server = Server(*words, folder=folder)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
