"""Servers as processes of their own, and clients that ask them for streamed completions over raw sockets."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TEXT = re.compile(rb'"text": ?"[^"]')


class Server:
    """A server as a process.

    Args:
        name: How tables call it.
        command: Starts it.
        port: Where it listens.

    Attributes:
        ready: Seconds from its start to its first token.
    """

    def __init__(self, name: str, command: list[str], port: int) -> None:
        self.name, self.port = name, port
        begun = time.perf_counter()
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            if self._process.poll() is not None:
                raise SystemExit(f"{name} ended with exit code {self._process.returncode}: {' '.join(command)}")
            try:
                asyncio.run(ask(port, {"prompt": "Once", "max_tokens": 1}))
                break
            except (OSError, ValueError):
                time.sleep(0.02)
        self.ready = time.perf_counter() - begun

    def cpu(self) -> float:
        """CPU seconds so far of all threads."""
        return sum(self._threads().values())

    def main_cpu(self) -> float:
        """CPU seconds so far of its first thread, which is the event loop of ``llmctl serve``."""
        return self._threads()[self._process.pid]

    def memory(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def gauge(self, name: str) -> float:
        """A value of ``llmctl serve``'s metrics."""
        page = asyncio.run(get(self.port, "/metrics"))
        found = re.search(rf"^{name} (\S+)$", page, re.MULTILINE)
        assert found, name
        return float(found[1])

    def end(self) -> None:
        """Ends it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    def _threads(self) -> dict[int, float]:
        found = {}
        for thread in Path(f"/proc/{self._process.pid}/task").iterdir():
            try:
                found[int(thread.name)] = int((thread / "schedstat").read_text().split()[0]) / 1e9
            except OSError:  # it has just ended
                continue
        return found


def ours(model: str, port: int, *words: str) -> Server:
    """``llmctl serve`` as a process."""
    command = [sys.executable, "-m", "llmctl", "serve", model, "--port", str(port), "--quiet", *words]
    return Server("llmctl", command, port)


@dataclass
class Told:
    """What a client was told.

    Attributes:
        first: Seconds to the first token.
        last: Seconds to the end.
        data: All bytes, if they are kept.
    """

    first: float = 0.0
    last: float = 0.0
    data: bytes = b""


class _Client(asyncio.Protocol):
    """Asks, and reads up to the end of the stream; made cheap, since it shares the machine with the server."""

    def __init__(self, request: bytes, keep: bool) -> None:
        self._request, self._keep, self._tail = request, keep, b""
        self.told, self.begun = Told(), time.perf_counter()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._tail and not data.startswith(b"HTTP/1.1 200"):
            self._end(ValueError(data.decode("utf-8", "replace")))
            return
        if not self.told.first and TEXT.search(data):
            self.told.first = time.perf_counter() - self.begun
        if self._keep:
            self.told.data += data
        self._tail = (self._tail + data)[-30:]
        if b"[DONE]" in self._tail:
            self.told.last = time.perf_counter() - self.begun
            self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(ValueError(f"the stream broke off: {self._tail!r}"))

    def _end(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error) if error else self.done.set_result(None)
        self._transport.close()


def request_of(body: dict[str, object]) -> bytes:
    """The bytes of a request for a greedy, streamed completion."""
    data = json.dumps({"temperature": 0, "stream": True, "ignore_eos": True, **body}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


async def ask(port: int, body: dict[str, object], keep: bool = False) -> Told:
    """What a streamed completion tells.

    Raises:
        ValueError: It is refused, or breaks off.
    """
    _, client = await asyncio.get_running_loop().create_connection(
        lambda: _Client(request_of(body), keep), "127.0.0.1", port
    )
    await client.done
    return client.told


async def get(port: int, path: str) -> str:
    """A page."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    try:
        return (await reader.read()).decode()
    finally:
        writer.close()


def text_of(told: Told) -> str:
    """The text of a completion whose bytes were kept."""
    lines = [line[6:] for line in told.data.split(b"\n") if line.startswith(b"data: {")]
    return "".join(choice["text"] for line in lines for choice in json.loads(line)["choices"])
