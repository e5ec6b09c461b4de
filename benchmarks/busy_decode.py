"""Steps of the fused engine beside processes that are busy: one thread and two, on an idle machine and on a busy one.

Threads that wait for each other must not wait for a processor that another process has. Every round measures all cases one after
the other, so that what else the machine does meets them alike; medians count. Without paddle.

    python benchmarks/busy_decode.py --rounds 7 --busy 1
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

MEASURE = """
import json, sys, time
import numpy as np
from llmctl import plugins
from llmctl.infer.model_source import open_model
from llmctl.infer.options import EngineOptions
from llmctl.infer.loader import Packing, packed_model
from llmctl.infer.executors import native
from llmctl.infer.executors.base import BLOCK, Batch

folder = plugins.load("llama").folder / "starter" / "model"
source = open_model(folder, "auto", EngineOptions())
executor = native.NativeExecutor(packed_model(source.folder, source.plugin, source.dims, Packing()), 8)
executor.allocate(40)
table = np.arange(40, dtype=np.int32)[None]
one = np.zeros(1, np.int32)

def step(position):
    at = one + position
    executor.run(Batch(ids_T=one + 5, sequence_T=one, kv_position_T=at, position_T=at, second_position_T=None, attend_begin_T=one,
                       attend_end_T=at + 1, block_tables_RM=table, adapter_R=one - 1, logits_indices_L=one))

for line in sys.stdin:
    seconds, count, begin = float(line), 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        step(count % 500)
        count += 1
    print(json.dumps(count / (time.perf_counter() - begin)), flush=True)
"""
BUSY = "while True: pass"


def main() -> None:
    """Measures and prints a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--busy", type=int, default=1, help="busy processes")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=1.0)
    given = parser.parse_args()
    engines = {threads: Engine(threads) for threads in given.threads}
    found: dict[tuple[int, int], list[float]] = {}
    for _ in range(given.rounds):
        for busy in (0, given.busy):
            others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
            for threads, engine in engines.items():
                found.setdefault((busy, threads), []).append(engine.measure(given.seconds))
            for other in others:
                other.kill()
                other.wait()
    print("| busy processes | threads | tokens per second | of one thread |\n|---|---|---|---|")
    for (busy, threads), values in found.items():
        ratio = statistics.median(a / b for a, b in zip(values, found[busy, given.threads[0]], strict=True))
        print(f"| {busy} | {threads} | {statistics.median(values):,.0f} | {ratio:.2f} |")


class Engine:
    """A process that measures when it is asked, with a number of threads."""

    def __init__(self, threads: int) -> None:
        settings = {**os.environ, "LLMCTL_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", MEASURE], env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.measure(0.2)

    def measure(self, seconds: float) -> float:
        """Steps per second."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline()))


if __name__ == "__main__":
    main()
