"""Two sides of a comparison as worker processes that take turns and never compute at the same time.

Other load does not slow both alike (torch's OpenMP suffers several times more from a stolen core than paddle's), so
interleaving alone would flatter us: the processor time that other processes take is measured during each turn, and only
rounds in which it was small on both sides count. A benchmark is a script that calls ``main`` with its two sides.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

PAUSE = 0.3  # seconds; longer than OpenMP's threads of the other worker spin after their last work
FOREIGN = 0.10  # cores that others may use during a turn that counts

Side = Callable[[Any], tuple[Callable[[], float], str]]
"""From the options: a function that does the work once and returns a number that must agree, and the side's name."""


def main(
    doc: str,
    script: str,
    sides: Mapping[str, Side],
    tolerance: float | None,
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    prepared: Callable[[Any], AbstractContextManager[Sequence[str]]] = lambda options: nullcontext([]),
) -> None:
    """The command line of a benchmark.

    Args:
        doc: Its documentation.
        script: Its file, which workers run.
        sides: ``ours`` and ``peer``; ours runs in this python, the peer in the one that is named.
        tolerance: Largest difference of the returned numbers; None = they are not compared.
        arguments: Adds further options, which both sides get.
        prepared: From the options: what is made once for both sides, as further words of the workers' command lines.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=os.environ.get("LLMCTL_PEER_PYTHON"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--attempts", type=int, default=40, help="rounds at most, quiet or not")
    parser.add_argument("--steps", type=int, default=2, help="repetitions in a turn; their median counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", action="store_true", help="count rounds in which others were busy too, and say so")
    parser.add_argument("--worker", choices=tuple(sides), help=argparse.SUPPRESS)
    arguments(parser)
    options = parser.parse_args()
    if options.worker:
        _serve(*sides[options.worker](options))
    elif not options.peer_python:
        parser.error("--peer-python (or LLMCTL_PEER_PYTHON) must name a python with torch and transformers")
    else:
        with prepared(options) as further:
            _compare(options, script, tolerance, further)


def _serve(step: Callable[[], float], name: str) -> None:
    """Serves one side: for each line ``n`` on stdin does the work n times and prints seconds and results as JSON."""
    print(json.dumps({"name": name}), flush=True)
    for line in sys.stdin:
        seconds, results, cpu = [], [], time.process_time()
        for _ in range(int(line)):
            start = time.perf_counter()
            results.append(step())
            seconds.append(time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answer = {"seconds": seconds, "results": results, "cpu": time.process_time() - cpu, "peak": peak}
        print(json.dumps(answer), flush=True)


class Worker:
    """The process of one side."""

    def __init__(self, python: str, side: str, script: str, threads: int, further: Sequence[str] = ()) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "LLMCTL_THREADS": str(threads)}
        command = [python, os.path.abspath(script), *sys.argv[1:], *further, "--worker", side]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.name = self._read()["name"]

    def turn(self, steps: int) -> dict[str, Any]:
        """Does the work; seconds and result of each time, and the cores that other processes used meanwhile."""
        time.sleep(PAUSE)
        busy, start = busy_seconds(), time.perf_counter()
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self._read()
        foreign = busy_seconds() - busy - answer["cpu"]
        return {**answer, "foreign": foreign / (time.perf_counter() - start)}

    def _read(self) -> dict[str, Any]:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"a worker ended with status {self.process.wait()}: {' '.join(self.process.args)}")


def busy_seconds() -> float:
    """Processor seconds that all processes used since boot, time stolen by the hypervisor included (Linux)."""
    with open("/proc/stat") as stat:
        user, nice, system, _, _, interrupts, soft, steal = (int(field) for field in stat.readline().split()[1:9])
    return (user + nice + system + interrupts + soft + steal) / os.sysconf("SC_CLK_TCK")


def _compare(options: Any, script: str, tolerance: float | None, further: Sequence[str]) -> None:
    """Runs rounds until enough were quiet; prints a table and a line of JSON.

    Raises:
        SystemExit: The results differ, or too few rounds were quiet for a ratio.
    """
    ours = Worker(sys.executable, "ours", script, options.threads, further)
    peer = Worker(options.peer_python, "peer", script, options.threads, further)
    rounds, worst, peaks = [], 0.0, [0, 0]
    for index in range(options.attempts + 1):
        turns = [worker.turn(options.steps) for worker in (ours, peer)]
        worst = max([worst, *(abs(a - b) for a, b in zip(*(turn["results"] for turn in turns), strict=True))])
        if tolerance is not None and worst > tolerance:
            raise SystemExit(f"the results differ by {worst:.2g}, more than {tolerance}: the sides do not do the same")
        pair = [statistics.median(turn["seconds"]) for turn in turns]
        peaks = [turn["peak"] for turn in turns]
        quiet = options.busy or max(turn["foreign"] for turn in turns) <= FOREIGN
        verdict = "warm-up" if index == 0 else "counts" if quiet else "busy, dropped"
        print(
            f"{index:>3} ours {pair[0]:.3f} s  peer {pair[1]:.3f} s  ratio {pair[0] / pair[1]:.3f}  "
            f"others {turns[0]['foreign']:.2f} / {turns[1]['foreign']:.2f} cores  {verdict}",
            flush=True,
        )
        rounds += [pair] if verdict == "counts" else []
        if len(rounds) == options.rounds:
            break
    if len(rounds) < options.rounds:
        raise SystemExit(f"only {len(rounds)} of {options.rounds} rounds were quiet: no ratio; use an idle machine")
    print(json.dumps(_result(options, ours, peer, rounds, worst, peaks)))


def _result(options: Any, ours: Worker, peer: Worker, rounds: list, worst: float, peaks: list) -> dict[str, Any]:
    ratios = [a / b for a, b in rounds]
    return {
        "ours": ours.name,
        "peer": peer.name,
        "threads": options.threads,
        "others_were_busy": options.busy,
        "ours_s": statistics.median(a for a, _ in rounds),
        "peer_s": statistics.median(b for _, b in rounds),
        "ours_best_s": min(a for a, _ in rounds),
        "peer_best_s": min(b for _, b in rounds),
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ours_peak_gb": peaks[0] / 1e9,
        "peer_peak_gb": peaks[1] / 1e9,
        "peak_ratio": peaks[0] / peaks[1],
        "largest_difference": worst,
    }
