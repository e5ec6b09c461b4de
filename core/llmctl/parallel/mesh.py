"""The ranks of a run, connected: groups along the axes of a topology, waits, sums over the rows of a step.

Collectives are Paddle's. Where ranks wait for unequal work, such as an evaluation or a checkpoint, they look at the common store
instead: on CPUs a collective breaks after 30 seconds.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import paddle
from paddle import distributed

from llmctl.io.json_object import parse_json
from llmctl.parallel import collectives, gloo, stores
from llmctl.parallel.axis import Axis
from llmctl.parallel.faults import heartbeat, watch
from llmctl.parallel.faults.failures import Failures
from llmctl.parallel.rank import ON_FAILURE, Rank, end_with, other_ranks
from llmctl.parallel.topology import AXES, EXPERTS, Topology

T = TypeVar("T")

BUCKET = 100 << 20
"""Bytes of gradients or weights that are communicated by one call."""

HANG_ON_CPUS = 25.0
"""Longest wait in a collective on CPUs without a report; after 30 seconds it breaks."""

POLL = 0.001, 0.02
"""Seconds between the first two looks at the store while other ranks are waited for, and the most between later ones."""

FLEET = {"pipeline": "pp", "data": "dp", "sharding": "sharding", "tensor": "mp"}
"""Paddle's names of the axes."""


class Mesh:
    """Connects this process with the others; as ``parallel.ranks.Ranks``.

    Args:
        topology: How the ranks are arranged.
        rank: Which one this is; ``parallel.rank.from_environment`` reads it from the environment, where Paddle looks too.
        hang_seconds: After waiting as long in a collective, rank 0 prints who waits for whom; on CPUs after ``HANG_ON_CPUS`` at most.
        bucket: Bytes of gradients or weights that are communicated by one call.

    Attributes:
        topology: As given.
        rank: As given.
        bucket: As given.
        place: The coordinates of this rank.
        number: Which ones of the step's rows are this rank's: its number among the ranks with different rows.
        size: How many of these there are.
        weights_shared: Whether ranks of the sharding axis share the weights, so that they compute forward passes together.

    Raises:
        PeerLost: Another rank does not come.
        ValueError: The topology is of another number of ranks.
    """

    def __init__(self, topology: Topology, rank: Rank, hang_seconds: float = 600.0, bucket: int = BUCKET) -> None:
        if topology.size != rank.size:
            raise ValueError(f"the topology has {topology.size} ranks, the run {rank.size}")
        self.topology, self.rank, self.bucket = topology, rank, bucket
        self.place = topology.coordinates(rank.number)
        self.number, self.size = topology.batch_number(rank.number), topology.batch
        self._barriers, self._closed, self._axes = 0, False, dict[str, Axis]()
        self.weights_shared = False
        self._asking: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
        self._answer: Callable[[], object] = lambda: None
        if not paddle.is_compiled_with_cuda():
            gloo.install()
        with other_ranks("the start"), _silent():
            self._store = stores.first()
            distributed.init_parallel_env()
        self._failures = Failures(rank.number, rank.size)
        ON_FAILURE.append(partial(self._failures.tell, self._store))
        heartbeat.start(stores.connection, rank.number)
        seconds = hang_seconds if paddle.is_compiled_with_cuda() else min(hang_seconds, HANG_ON_CPUS)
        look, end = self._failures.look, partial(end_with, rank)
        watch.start(stores.connection, rank.number, rank.size, seconds, look=look, end=end)
        with other_ranks("the start"), watch.waiting("the start", unlimited=True), _silent():
            for name in (*AXES, *EXPERTS):
                self.axis(name)

    @property
    def main(self) -> bool:
        """Whether this is rank 0 of all, which prints and writes."""
        return self.rank.number == 0

    @property
    def evaluates(self) -> bool:
        """Whether this rank has parts of the copy of the model that is evaluated, with rank 0."""
        return self.number < (self.topology.block if self.weights_shared else self.topology.expert)

    @property
    def world(self) -> Axis:
        """All ranks."""
        everyone = distributed.get_group(0) if self.rank.size > 1 else None
        return Axis("world", self.rank.number, self.rank.size, everyone)

    @property
    def tensor(self) -> Axis:
        """The ranks that share each layer."""
        return self.axis("tensor")

    @property
    def pipeline(self) -> Axis:
        """The stages of one copy of the model."""
        return self.axis("pipeline")

    @property
    def data(self) -> Axis:
        """The ranks that hold the same, and train on different rows."""
        return self.axis("data")

    @property
    def sharding(self) -> Axis:
        """The ranks that share the state of the optimizer, and train on different rows."""
        return self.axis("sharding")

    def axis(self, name: str) -> Axis:
        """One of the axes of ``Topology.peers``. The first call for a name must be made by all ranks, in the same order."""
        if name not in self._axes:
            self._axes[name] = self._connect(name)
        return self._axes[name]

    @cached_property
    def hybrid(self) -> Any:
        """Paddle's ``HybridCommunicateGroup``, which its pipelines ask for; the first call must be made by all ranks."""
        from paddle.distributed import fleet

        strategy = fleet.DistributedStrategy()
        degrees = {f"{FLEET[name]}_degree": getattr(self.topology, name) for name in AXES}
        order = [FLEET[name] for name in AXES]
        strategy.hybrid_configs = {**degrees, "order": [*order[:-1], "sep", order[-1]]}
        with _silent():
            fleet.init(is_collective=True, strategy=strategy)
        return fleet.get_hybrid_communicate_group()

    def _connect(self, name: str) -> Axis:
        peers, all_groups = self.topology.peers(name, self.rank.number), self.topology.groups(name)
        place = peers.index(self.rank.number)
        groups = [ranks for ranks in all_groups if len(ranks) > 1]
        if not groups:
            return Axis(name, place, 1)
        for known in self._axes.values():
            if self.topology.groups(known.name) == all_groups:
                return replace(known, name=name)
        if len(peers) == self.rank.size:
            return Axis(name, place, len(peers), self.world.group)
        if self.topology.pipeline > 1 and name in AXES:
            kind = {"pipeline": "pipe", "tensor": "model"}.get(name, name)
            return Axis(name, place, len(peers), getattr(self.hybrid, f"get_{kind}_parallel_group")())
        # Paddle numbers groups as they are made: also those that this rank is not in.
        made = {ranks: distributed.new_group(list(ranks)) for ranks in groups}
        return Axis(name, place, len(peers), made.get(peers))

    @paddle.no_grad()
    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks with different rows, in float64, of what those with the loss give: the last stages."""
        last = self.place.pipeline == self.topology.pipeline - 1
        counts = last and self.place.tensor == 0
        return self._sum([float(value) if counts else 0.0 for value in values], "a sum of numbers")

    def sum_all(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks, in float64."""
        return self._sum([float(value) for value in values], "a sum of numbers")

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether any rank has set it."""
        return [count > 0 for count in self._sum([float(flag) for flag in flags], "an agreement")]

    def _sum(self, values: Sequence[float], what: str) -> list[float]:
        summed = paddle.to_tensor(np.asarray(values, np.float64))
        with other_ranks(what), watch.waiting(f"{what} over world"):
            distributed.all_reduce(summed)
        return [float(value) for value in summed.numpy()]

    @paddle.no_grad()
    def sum_grads(self, parameters: Iterable[Any], over: str = "data") -> None:
        """Replaces gradients by their sums over the ranks of an axis; one that none of them has stays absent.

        Args:
            parameters: The parameters.
            over: The axis of the ranks that have the same.
        """
        axis, parameters = self.axis(over), list(parameters)
        if axis.size == 1 or not parameters:
            return
        anywhere = paddle.to_tensor([float(p.grad is not None) for p in parameters])
        anywhere = collectives.all_reduce(anywhere, axis)
        found = [p for p, count in zip(parameters, anywhere.tolist(), strict=True) if count]
        for parameter in found:
            if parameter.grad is None:
                parameter.grad = paddle.zeros(parameter.shape, parameter.dtype)
        collectives.all_reduce_all([parameter.grad for parameter in found], axis, self.bucket)

    def lead_by(self, asking: Callable[[], AbstractContextManager[None]], answer: Callable[[], object]) -> None:
        """Sets how rank 0 asks the others for what it needs in ``lead``: its context, and what the others do meanwhile."""
        self._asking, self._answer = asking, answer

    def lead(self, work: Callable[[], object]) -> None:
        """Does the work on rank 0, however long that takes, while the others answer what it asks for."""
        self.barrier()
        if self.main:
            with self._asking():
                work()
        else:
            with other_ranks("an answer to rank 0"):
                self._answer()
        self.barrier()

    def all_gather_object(self, value: T, axis: Axis | None = None) -> list[T]:
        """The values of all ranks, or of those of an axis, of types that JSON has."""
        axis, values = axis or self.world, list[T]()
        if axis.size == 1:
            return [value]
        what = f"an exchange of values over {axis.name}"
        with other_ranks(what), watch.waiting(what):
            distributed.all_gather_object(values, value, group=axis.group)
        return values

    def barrier(self) -> None:
        """Returns when all ranks have come here, however long that takes."""
        self._barriers += 1
        with other_ranks("a barrier"), watch.waiting("a barrier of all ranks", unlimited=True):
            self._wait(f"llmctl/barrier/{self._barriers}", self.rank.size)

    def close(self) -> None:
        """Waits for all ranks for the last time; rank 0, which holds the store, leaves last. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self.barrier()
        if self.main:
            self._wait("llmctl/left", self.rank.size)
        else:
            # Rank 0 may be gone before its answer is read.
            with contextlib.suppress(Exception):
                self._store.add("llmctl/left", 1)

    def _wait(self, key: str, count: int) -> None:
        """Counts this rank and waits until as many are counted.

        Raises:
            PeerLost: Another rank failed, or gives no sign of life.
        """
        here = self._store.add(key, 1)
        signs = heartbeat.Signs(self._store, self.rank.number, self.rank.size)
        pause, longest = POLL
        while here < count:
            time.sleep(pause)
            pause = min(2 * pause, longest)
            signs.check()
            if lost := self._failures.look(self._store):
                raise lost
            here = self._store.add(key, 0)

    def broadcast_object(self, value: T) -> T:
        """The value of rank 0, of types that JSON has; what others pass is ignored."""
        key = f"llmctl/broadcast/{self._barriers}"
        if self.main:
            self._store.set(key, json.dumps(value).encode())
        self.barrier()
        if self.main:
            return value
        with other_ranks("a message of rank 0"):
            told: T = parse_json(bytes(self._store.get(key)))
        return told

    def check_equal(self, sums: Iterable[float]) -> None:
        """Raises if these sums of weights differ between ranks of the data axis, or of the sharding axis.

        Raises:
            RuntimeError: They differ.
        """
        self.barrier()
        sums, apart = list(sums), False
        for axis in (self.data, self.sharding):
            if axis.size > 1:
                summed = paddle.to_tensor(np.asarray(sums, np.float64))
                with other_ranks("a comparison"), watch.waiting(f"a comparison over {axis.name}"):
                    distributed.all_reduce(summed, group=axis.group)
                means = summed.numpy() / axis.size
                apart |= any(m != own and abs(m - own) > 1e-9 * abs(own) for m, own in zip(means, sums, strict=True))
        if self.any([apart])[0]:
            raise RuntimeError(
                "the ranks started with different weights; are model.path and llmctl the same on all machines?"
            )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without Paddle's notes on flags and topologies."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
