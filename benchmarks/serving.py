"""Tokens per second, times to the first token and CPU time of ``llmctl serve``, beside the engine driven directly and a peer.

Every round asks each server for the same greedy completions, one server after the other, so that what else the machine does meets them
alike; medians count. The client reads raw sockets, and is another process. The peer is llama.cpp's server:

    llmctl convert MODEL model.gguf --to gguf
    python benchmarks/serving.py MODEL --peer path/to/llama-server --peer-model model.gguf --streams 1 8 32 64
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path


class Server:
    """A server as a process of its own.

    Args:
        name: How the table calls it.
        command: Starts it.
        port: Where it listens.
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
        """CPU seconds so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def end(self) -> None:
        """Ends it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


async def ask(port: int, more: dict[str, object]) -> tuple[float, float, int]:
    """Seconds to the first token and to the end, and tokens, of a streamed completion."""
    body = json.dumps({"temperature": 0, "stream": True, "ignore_eos": True, **more}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    begun, first, tokens = time.perf_counter(), 0.0, 0
    writer.write(head.encode() + body)
    try:
        tail = b""
        while b"[DONE]" not in tail:
            data = await reader.read(1 << 16)
            if not data:
                raise ValueError(f"the stream broke off: {tail!r}")
            if not tail and not data.startswith(b"HTTP/1.1 200"):
                raise ValueError(data.decode("utf-8", "replace"))
            tokens += len(re.findall(rb'"text": ?"[^"]', data))
            first = first or (time.perf_counter() - begun if tokens else 0.0)
            tail = (tail + data)[-30:]
    finally:
        writer.close()
    return first, time.perf_counter() - begun, tokens


async def crowd(port: int, streams: int, tokens: int) -> tuple[float, float]:
    """Tokens per second of so many streams at a time, and the 95th percentile of seconds to the first token."""
    prompts = [f"Once upon a time there were {number} friends." for number in range(streams)]
    begun = time.perf_counter()
    found = await asyncio.gather(*(ask(port, {"prompt": prompt, "max_tokens": tokens}) for prompt in prompts))
    firsts = sorted(first for first, _, _ in found)
    return streams * tokens / (time.perf_counter() - begun), firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))]


def direct(model: str, streams: int, tokens: int) -> float:
    """Tokens per second of the engine without a server."""
    from llmctl import LLM, SamplingParams

    with LLM(model, engine="fused", batch_size=64, step_tokens=128) as llm:
        prompts = [f"Once upon a time there were {number} friends." for number in range(streams)]
        params = SamplingParams(max_new_tokens=tokens, ignore_eos=True)
        llm.generate(prompts[:1], params)
        begun = time.perf_counter()
        llm.generate(prompts, params)
        return streams * tokens / (time.perf_counter() - begun)


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", help="llama-server")
    parser.add_argument("--peer-model", help="the same model as GGUF")
    given = parser.parse_args()
    os.environ["LLMCTL_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(given.threads)
    ours = [sys.executable, "-m", "llmctl", "serve", given.model, "--port", "8791", "--quiet"]
    servers = [Server("llmctl", ours, 8791)]
    if given.peer:
        slots = max(given.streams)
        theirs = [given.peer, "-m", given.peer_model, "--port", "8792", "-t", str(given.threads), "-tb", str(given.threads),
                  "--parallel", str(slots), "-c", str(512 * slots)]  # fmt: skip
        servers.append(Server("llama-server", theirs, 8792))
    try:
        print(
            "| | ready | " + " | ".join(f"{count} streams" for count in given.streams) + " | TTFT p95 | CPU | memory |"
        )
        print("|" + "---|" * (len(given.streams) + 5))
        rates: dict[tuple[str, int], list[float]] = {}
        firsts: dict[str, list[float]] = {}
        cpus: dict[str, list[float]] = {}
        for _ in range(given.rounds):
            for count in given.streams:
                for server in servers:
                    before = server.cpu()
                    rate, first = asyncio.run(crowd(server.port, count, given.tokens))
                    rates.setdefault((server.name, count), []).append(rate)
                    if count == given.streams[-1]:
                        firsts.setdefault(server.name, []).append(first)
                        cpus.setdefault(server.name, []).append((server.cpu() - before) / (count * given.tokens))
                rates.setdefault(("engine", count), []).append(direct(given.model, count, given.tokens))
        for server in servers:
            cells = [f"{statistics.median(rates[server.name, count]):,.0f}" for count in given.streams]
            last = f"{1e3 * statistics.median(firsts[server.name]):.0f} ms | {1e6 * statistics.median(cpus[server.name]):.0f} us/token"
            print(
                f"| {server.name} | {server.ready:.1f} s | "
                + " | ".join(cells)
                + f" | {last} | {server.memory() / 2**20:.0f} MiB |"
            )
        cells = [f"{statistics.median(rates['engine', count]):,.0f}" for count in given.streams]
        print("| engine directly | | " + " | ".join(cells) + " | | | |")
    finally:
        for server in servers:
            server.end()


if __name__ == "__main__":
    main()
