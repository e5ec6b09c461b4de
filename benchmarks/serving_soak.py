"""``llmctl serve`` under load for long, and with clients that leave: lost and changed answers, memory, and when the engine is free again.

python benchmarks/serving_soak.py MODEL --seconds 120        # 64 clients: none lost, every greedy answer that of an idle server
python benchmarks/serving_soak.py MODEL --requests 10000     # memory
python benchmarks/serving_soak.py MODEL --leave 20           # clients that leave, in each of three ways
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import time

from lib.served import Server, ask, ours, request_of, text_of

TEXTS = ("Once upon a time", "The cat said", "Tom and Lily went to the park.", "A red ball")
WARM = 500
"""Requests before memory is first read."""


def body(number: int) -> dict[str, object]:
    """The request with a number: one of 256, short and long ones."""
    number %= 256
    return {"prompt": f"{TEXTS[number % 4]} {number}. " * (1 + number % 7), "max_tokens": 8 + number % 57}


async def clients(port: int, count: int, goes_on, answered) -> None:
    """So many clients that ask one request after the other.

    Args:
        port: Where.
        count: How many clients.
        goes_on: Whether a request with this number is asked.
        answered: Gets its number, and the text or the error.
    """
    numbers = iter(range(1 << 60))

    async def client() -> None:
        while goes_on(number := next(numbers)):
            try:
                answered(number, text_of(await ask(port, body(number), keep=True)))
            except (OSError, ValueError) as error:
                answered(number, error)

    await asyncio.gather(*(client() for _ in range(count)))


def soak(server: Server, count: int, seconds: float) -> None:
    """Clients that ask for so long, and the same requests one after the other on the idle server."""
    found: list[tuple[int, object]] = []
    end = time.monotonic() + seconds
    asyncio.run(clients(server.port, count, lambda _: time.monotonic() < end, lambda *one: found.append(one)))
    idle: dict[int, object] = {}
    asyncio.run(clients(server.port, 1, lambda number: number < 256, idle.__setitem__))
    lost = [text for _, text in found if isinstance(text, Exception)]
    changed = sum(text != idle[number % 256] for number, text in found if not isinstance(text, Exception))
    print(
        f"{count} clients, {seconds:g} s: {len(found)} answers, {len(lost)} lost, {changed} not those of the idle server"
    )
    for error in lost[:3]:
        print(f"  {error}")


def memory(server: Server, count: int, requests: int) -> None:
    """Memory before and after so many requests."""
    lost = []

    def answered(number: int, text: object) -> None:
        if isinstance(text, Exception):
            lost.append(text)

    asyncio.run(clients(server.port, count, lambda number: number < WARM, answered))
    before = server.memory()
    asyncio.run(clients(server.port, count, lambda number: number < requests, answered))
    grown = (server.memory() - before) / 2**20
    print(f"{requests} requests of {count} clients: {len(lost)} lost, memory {before / 2**20:.0f} MiB {grown:+.1f} MiB")


async def left(server: Server, stream: bool, waits: bool, tokens: int) -> None:
    """A client asks, and leaves when its answer has begun; or while it waits for it behind others."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request_of({"prompt": TEXTS[0], "max_tokens": tokens, "stream": stream}))
    if stream and not waits:
        await reader.readuntil(b'"text"')
    else:
        await asyncio.sleep(0.05)
    writer.close()


def leave(server: Server, times: int, tokens: int) -> None:
    """How long after a client has left the engine has nothing to do, beside the time of a step."""
    steps = []
    for _ in range(5):
        told = asyncio.run(ask(server.port, {"prompt": TEXTS[0], "max_tokens": 64}))
        steps.append((told.last - told.first) / 63)
    print(
        f"a step of one answer: {1e3 * statistics.median(steps):.1f} ms\n\n| who leaves | engine free after, median | longest |\n|---|---|---|"
    )
    for name, stream, waits in (
        ("reads a stream", True, False),
        ("waits for a stream", True, True),
        ("waits for a whole answer", False, True),
    ):
        waited = []
        for _ in range(times):
            time.sleep(random.uniform(0, 0.02))
            asyncio.run(left(server, stream, waits, tokens))
            begun = time.perf_counter()
            while server.gauge("llmctl_engine_running") + server.gauge("llmctl_engine_waiting"):
                pass
            waited.append(time.perf_counter() - begun)
        print(f"| {name} | {1e3 * statistics.median(waited):.0f} ms | {1e3 * max(waited):.0f} ms |")


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--weights", default="", help="data type of the weights, as of llmctl serve")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--leave", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=400, help="of answers whose clients leave")
    given = parser.parse_args()
    os.environ["LLMCTL_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    server = ours(given.model, 8793, *(["--weights", given.weights] if given.weights else []))
    try:
        if given.seconds:
            soak(server, given.clients, given.seconds)
        if given.requests:
            memory(server, given.clients, given.requests)
        if given.leave:
            leave(server, given.leave, given.tokens)
    finally:
        server.end()


if __name__ == "__main__":
    main()
