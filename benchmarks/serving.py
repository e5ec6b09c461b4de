"""Tokens per second, times to the first token and CPU time of ``llmctl serve``, beside the engine driven directly and a peer.

Every round asks each server for the same greedy completions, one server after the other, so that what else the machine does meets them
alike; the median of the rounds' ratios counts. Prompts are new in every round. The peer is llama.cpp's server:

    python benchmarks/serving.py MODEL --make 134m --tokenizer FOLDER      # a model with random weights, if there is no other
    llmctl convert MODEL model.gguf --to gguf --dtype q4_0
    python benchmarks/serving.py MODEL --weights int4 --peer path/to/llama-server --peer-model model.gguf --streams 1 8 32 64
    python benchmarks/serving.py MODEL --streams 256          # CPU time of HTTP
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.random_llama import SIZES, write_folder
from lib.served import Server, ask, ours

PROMPT_TOKENS = 64
"""Tokens of prompts in a step of the server."""


@dataclass
class Found:
    """What was measured with a number of streams, a value for each round.

    Attributes:
        rates: Tokens per second.
        firsts: The 95th percentile of seconds to the first token.
        cpus: CPU seconds a token.
        mains: Those of the first thread.
    """

    rates: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    mains: list[float] = field(default_factory=list)


def prompts(streams: int, turn: int) -> list[str]:
    """Prompts that no turn before had."""
    return [f"{turn}. Once upon a time there were {number} friends." for number in range(streams)]


async def crowd(port: int, streams: int, tokens: int, turn: int) -> tuple[float, float]:
    """Tokens per second of so many streams at a time, and the 95th percentile of seconds to the first token."""
    begun = time.perf_counter()
    told = await asyncio.gather(
        *(ask(port, {"prompt": prompt, "max_tokens": tokens}) for prompt in prompts(streams, turn))
    )
    firsts = sorted(one.first for one in told)
    return streams * tokens / (time.perf_counter() - begun), firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))]


def measure(server: Server, found: Found, streams: int, tokens: int, turn: int) -> None:
    """A turn of a server."""
    cpu, main = server.cpu(), server.main_cpu()
    rate, first = asyncio.run(crowd(server.port, streams, tokens, turn))
    found.rates.append(rate)
    found.firsts.append(first)
    found.cpus.append((server.cpu() - cpu) / (streams * tokens))
    found.mains.append((server.main_cpu() - main) / (streams * tokens))


def measure_directly(llm: Any, found: Found, streams: int, tokens: int, turn: int) -> None:
    """A turn of the engine without a server."""
    from llmctl import SamplingParams

    begun, cpu = time.perf_counter(), time.process_time()
    llm.generate(prompts(streams, turn), SamplingParams(max_new_tokens=tokens, ignore_eos=True))
    found.rates.append(streams * tokens / (time.perf_counter() - begun))
    found.cpus.append((time.process_time() - cpu) / (streams * tokens))


def ratio(values: list[float], others: list[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(one / other for one, other in zip(values, others, strict=True))


def main() -> None:
    """Measures and prints tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--make", choices=SIZES, help="write MODEL with random weights, and end")
    parser.add_argument("--tokenizer", type=Path, help="folder of its tokenizer, with fewer tokens than the model")
    parser.add_argument("--weights", default="", help="data type of the weights, as of llmctl serve")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", help="llama-server")
    parser.add_argument("--peer-model", help="the same model as GGUF")
    given = parser.parse_args()
    if given.make:
        shutil.copytree(given.tokenizer, write_folder(Path(given.model), given.make), dirs_exist_ok=True)
        return
    os.environ["LLMCTL_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(given.threads)
    rows = max(64, *given.streams)
    servers = [
        ours(given.model, 8791, "--batch-size", str(rows), *(["--weights", given.weights] if given.weights else []))
    ]
    try:
        if given.peer:
            slots = max(given.streams)
            theirs = [given.peer, "-m", given.peer_model, "--port", "8792", "-t", str(given.threads), "-tb", str(given.threads),
                      "--parallel", str(slots), "-c", str(512 * slots)]  # fmt: skip
            servers.append(Server("llama-server", theirs, 8792))
        report(given, servers, rounds(given, servers, rows))
    finally:
        for server in servers:
            server.end()


def rounds(given: argparse.Namespace, servers: list[Server], rows: int) -> dict[tuple[str, int], Found]:
    """What was measured, by server and number of streams."""
    from llmctl import LLM

    found: dict[tuple[str, int], Found] = defaultdict(Found)
    weights = {"weights": given.weights} if given.weights else {}
    with LLM(given.model, engine="fused", batch_size=rows, step_tokens=rows + PROMPT_TOKENS, **weights) as llm:
        for turn in range(-1, given.rounds):
            measured = (
                found if turn >= 0 else defaultdict(Found)
            )  # the first turn is none: memory is touched for the first time
            for count in given.streams:
                for server in servers:
                    measure(server, measured[server.name, count], count, given.tokens, turn)
                measure_directly(llm, measured["engine", count], count, given.tokens, turn)
    return found


def report(given: argparse.Namespace, servers: list[Server], found: dict[tuple[str, int], Found]) -> None:
    """Prints the tables."""
    first = servers[0]
    titles = [*(f"{server.name}, TTFT p95" for server in servers), "engine directly", "llmctl of it"]
    titles += [f"{what} of {other.name}'s" for other in servers[1:] for what in ("llmctl", "TTFT")]
    print(f"| streams | {' | '.join(titles)} |\n|" + "---|" * (len(titles) + 1))
    for count in given.streams:
        mine, direct = found[first.name, count], found["engine", count]
        cells = [
            f"{statistics.median(one.rates):,.0f}, {1e3 * statistics.median(one.firsts):.0f} ms"
            for one in (found[server.name, count] for server in servers)
        ]
        cells += [f"{statistics.median(direct.rates):,.0f}", f"{ratio(mine.rates, direct.rates):.2f}"]
        for other in servers[1:]:
            theirs = found[other.name, count]
            cells += [f"{ratio(mine.rates, theirs.rates):.2f}", f"{ratio(mine.firsts, theirs.firsts):.2f}"]
        print(f"| {count} | " + " | ".join(cells) + " |")
    print("\n| streams | CPU a token | of the event loop | of the engine driven directly |\n|---|---|---|---|")
    for count in given.streams:
        mine, direct = found[first.name, count], found["engine", count]
        cells = [f"{1e6 * statistics.median(values):.1f} us" for values in (mine.cpus, mine.mains, direct.cpus)]
        print(f"| {count} | " + " | ".join(cells) + " |")
    print()
    for server in servers:
        print(f"{server.name}: ready after {server.ready:.1f} s, {server.memory() / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
