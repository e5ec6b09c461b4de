"""Ranks for tests: forks of this process, which has imported paddle already."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any

from llmctl.parallel.launch import Devices, free_ports, rank_environments
from llmctl.parallel.mesh import Mesh
from llmctl.parallel.rank import from_environment
from llmctl.parallel.topology import Topology


def run_ranks(
    size: int, job: Callable[..., Any], *args: Any, topology: Topology | None = None, seconds: float = 120.0
) -> list[Any]:
    """What a job returns in each of several ranks.

    Args:
        size: Number of ranks.
        job: Called with the connected ``Mesh`` and the arguments; returns what can be pickled.
        *args: Further arguments.
        topology: How the ranks are arranged; None = all along the data axis.
        seconds: Limit for all.

    Raises:
        AssertionError: A rank failed, or took too long; the message has the traceback of the first.
    """
    context = multiprocessing.get_context("fork")
    environments = rank_environments(Devices(size), os.environ, free_ports(size + 1))
    pipes, processes = [], []
    with _all_ended(processes):
        for environment in environments:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_child, args=(theirs, environment, topology or Topology(data=size), job, args), daemon=True
            )
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        results = _receive(pipes, time.monotonic() + seconds)
    failures = [result for result in results.values() if isinstance(result, _Failure)]
    # A rank that lost another one is not the first to fail.
    failures.sort(key=lambda failure: "PeerLost" in failure)
    assert not failures, failures[0]
    return [results[number] for number in range(size)]


GRACE = 5.0
"""Seconds that ranks have to answer after another one failed."""


class _Failure(str):
    """A traceback."""


def _receive(pipes: list[Any], until: float) -> dict[int, Any]:
    """What the ranks answer, by number; after a failure the others have ``GRACE`` seconds."""
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        left = {pipe: number for number, pipe in enumerate(pipes) if number not in results}
        answered = connection.wait(list(left), max(0.0, until - time.monotonic()))
        if not answered:
            late = ", ".join(str(number) for number in left.values())
            results.update(dict.fromkeys(left.values(), _Failure(f"PeerLost, or no answer in time: ranks {late}")))
        for pipe in answered:
            try:
                results[left[pipe]] = pipe.recv()
            except EOFError:
                results[left[pipe]] = _Failure(f"rank {left[pipe]} ended without an answer")
            if isinstance(results[left[pipe]], _Failure):
                until = min(until, time.monotonic() + GRACE)
    return results


def _child(
    pipe: Any, environment: dict[str, str], topology: Topology, job: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    try:
        rank = from_environment()
        assert rank
        ranks = Mesh(topology, rank)
        result = job(ranks, *args)
        ranks.close()
    except BaseException:
        result = _Failure(traceback.format_exc())
    pipe.send(result)
    os._exit(0)


@contextlib.contextmanager
def _all_ended(processes: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()
