"""CPU time of a streamed token in the event loop of ``llmctl serve``, without its engine and without sockets, and where it goes.

The application gets tokens from a stand-in for the engine, those of a step together, and sends to one for the network.

    python benchmarks/serving_profile.py MODEL --streams 64
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import time
from typing import Any

from llmctl.config.serve import ServeConfig
from llmctl.infer.options import EngineOptions
from llmctl.infer.request import Event, Generation
from llmctl.infer.select import open_backend
from llmctl.serve.access.keys import Keys
from llmctl.serve.admission import Admission
from llmctl.serve.app import make_app
from llmctl.serve.metrics import Metrics
from llmctl.serve.server import load
from llmctl.serve.service import Service


class Tokens:
    """Stands for a bridge to an engine; the tokens of its answers are given by hand.

    Attributes:
        asked: The streams of answers that were asked for, with their numbers.
    """

    alive, dead = True, False

    def __init__(self) -> None:
        self.asked: list[tuple[Any, int]] = []

    def submit(self, request: Any, stream: Any, number: int) -> None:
        """Takes a request."""
        self.asked.append((stream, number))
        stream.opened(number, lambda: None)


async def ask(app: Any, tokens: int) -> None:
    """A client that reads a streamed completion."""
    body = json.dumps({"prompt": "Once", "max_tokens": tokens, "stream": True, "temperature": 0}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        return await asyncio.get_running_loop().create_future()

    async def send(message: dict[str, Any]) -> None:
        pass

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/v1/completions", "raw_path": b"/v1/completions",
        "root_path": "", "query_string": b"", "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    await app(scope, receive, send)


async def measure(
    service: Service, bridge: Tokens, streams: int, tokens: int, profile: cProfile.Profile | None
) -> float:
    """CPU seconds a token of so many streams."""
    app, vocab = make_app(service, Keys(())), service.model.vocab
    bridge.asked = []
    clients = [asyncio.create_task(ask(app, tokens)) for _ in range(streams)]
    while len(bridge.asked) < streams:
        await asyncio.sleep(0.001)
    begun = time.thread_time()
    if profile:
        profile.enable()
    for step in range(tokens):
        for row, (stream, number) in enumerate(bridge.asked):
            stream.put((number, Event(0, token=(7 * step + row) % vocab)))
        for _ in range(3):
            await asyncio.sleep(0)
    if profile:
        profile.disable()
    seconds = time.thread_time() - begun
    for stream, number in bridge.asked:
        stream.put((number, Event(0, done=Generation([], "length"))))
    await asyncio.gather(*clients)
    return seconds / (streams * tokens)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    given = parser.parse_args()
    config = ServeConfig()
    config.model.path = given.model
    model, _, _ = load(open_backend(given.model, "auto", EngineOptions()), config)
    bridge: Any = Tokens()
    service = Service(model, bridge, Admission(given.streams, 1 << 30), Metrics())
    times = [asyncio.run(measure(service, bridge, given.streams, given.tokens, None)) for _ in range(5)]
    print(f"{1e6 * min(times):.1f} us a token")
    profile = cProfile.Profile()
    asyncio.run(measure(service, bridge, given.streams, given.tokens, profile))
    pstats.Stats(profile).sort_stats("tottime").print_stats(20)


if __name__ == "__main__":
    main()
