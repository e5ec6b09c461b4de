"""Ranks that share the forward passes of a step, over ``paddle.distributed``: gloo on CPUs, NCCL on GPUs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import paddle
from paddle import distributed
from paddle.base import core

from llmctl.io.json_object import parse_json
from llmctl.parallel import heartbeat
from llmctl.parallel.rank import ON_FAILURE, PeerLost, Rank

T = TypeVar("T")

BUCKET = 32 << 20
"""Bytes of gradients that are summed by one call."""

FAILED, REASON = "llmctl/failed", "llmctl/reason"
"""Keys of the store: how many ranks failed, and why the first did."""

POLL = 0.02
"""Seconds between two looks at the store while other ranks are waited for."""


class DataRanks:
    """Connects this process with the others.

    Args:
        rank: Which one this is; ``parallel.rank.from_environment`` reads it from the environment, where paddle looks too.

    Raises:
        PeerLost: Another rank does not come.
    """

    def __init__(self, rank: Rank) -> None:
        self.number, self.size = rank.number, rank.size
        if not paddle.is_compiled_with_cuda():
            os.environ.setdefault("PADDLE_DISTRI_BACKEND", "gloo")
        # It prints the flags of paddle that differ from its defaults.
        with (
            _other_ranks("the start"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            distributed.init_parallel_env()
            self._store = core.create_or_get_global_tcp_store()
        self._meetings, self._closed = 0, False
        ON_FAILURE.append(self._tell_failure)
        heartbeat.start(self._new_connection, self.number)

    @property
    def main(self) -> bool:
        """Whether this is rank 0."""
        return self.number == 0

    @paddle.no_grad()
    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks, in float64."""
        summed = paddle.to_tensor(np.asarray(values, np.float64))
        self._sum(summed, "a sum of numbers")
        return [float(value) for value in summed.numpy()]

    @paddle.no_grad()
    def sum_grads(self, parameters: Iterable[Any]) -> None:
        """Replaces the gradients by their sums over all ranks; a gradient that no rank has stays absent."""
        parameters = list(parameters)
        anywhere = self.total([float(p.grad is not None) for p in parameters])
        found = [p for p, count in zip(parameters, anywhere, strict=True) if count]
        for bucket in _buckets(found):
            grads = [paddle.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = paddle.concat([grad.reshape([-1]) for grad in grads])
            self._sum(flat, "the sum of gradients")
            parts = paddle.split(flat, [grad.size for grad in grads])
            for parameter, grad, part in zip(bucket, grads, parts, strict=True):
                if parameter.grad is None:
                    parameter.grad = part.reshape(grad.shape)
                else:
                    paddle.assign(part.reshape(grad.shape), output=parameter.grad)

    def wait(self) -> None:
        """Returns when all ranks have come here, however long that takes."""
        self._meetings += 1
        with _other_ranks("a meeting"):
            self._meet(f"llmctl/meeting/{self._meetings}", self.size)

    def close(self) -> None:
        """Waits for all ranks for the last time; rank 0, which holds the store, leaves last. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self.wait()
        if self.main:
            self._meet("llmctl/left", self.size)
        else:
            # Rank 0 may be gone before its answer is read.
            with contextlib.suppress(Exception):
                self._store.add("llmctl/left", 1)

    def _meet(self, key: str, count: int) -> None:
        """Counts this rank and waits until as many are counted.

        Raises:
            PeerLost: Another rank failed, or gives no sign of life.
        """
        # The store answers at once, where a collective of gloo breaks after 30 seconds.
        here = self._store.add(key, 1)
        signs = heartbeat.Signs(self._store, self.number, self.size)
        while here < count:
            time.sleep(POLL)
            signs.check()
            if self._store.add(FAILED, 0):
                raise PeerLost(bytes(self._store.get(REASON)).decode())
            here = self._store.add(key, 0)

    def _tell_failure(self, reason: str) -> None:
        """Makes ranks on other machines, which another launcher follows, stop waiting."""
        if not self._store.add(FAILED, 0):
            self._store.set(REASON, f"rank {self.number} failed: {reason}".encode())
            self._store.add(FAILED, 1)

    def _new_connection(self) -> Any:
        host, _, port = os.environ["PADDLE_MASTER"].rpartition(":")
        return core.TCPStore(host, int(port), False, 1, 900)

    def tell(self, value: T) -> T:
        """The value of rank 0, of types that JSON has; what others pass is ignored."""
        key = f"llmctl/told/{self._meetings}"
        if self.main:
            self._store.set(key, json.dumps(value).encode())
        self.wait()
        if self.main:
            return value
        with _other_ranks("a message of rank 0"):
            told: T = parse_json(bytes(self._store.get(key)))
        return told

    @paddle.no_grad()
    def check_equal(self, tensors: Iterable[Any]) -> None:
        """Raises if the ranks' values of these tensors differ.

        Raises:
            RuntimeError: They differ.
        """
        self.wait()
        sums = [float(tensor.astype("float64").sum()) for tensor in tensors]
        means = [total / self.size for total in self.total(sums)]
        apart = [mean != own and abs(mean - own) > 1e-9 * abs(own) for mean, own in zip(means, sums, strict=True)]
        if any(self.total([float(any(apart))])):
            raise RuntimeError("the ranks began with unlike weights; are model.path and llmctl the same on all nodes?")

    def _sum(self, tensor: Any, what: str) -> None:
        with _other_ranks(what):
            distributed.all_reduce(tensor)


def _buckets(parameters: Sequence[Any]) -> Iterator[list[Any]]:
    """Parameters of one type each, in order, of about ``BUCKET`` bytes."""
    bucket: list[Any] = []
    held = 0
    for parameter in parameters:
        if bucket and (parameter.dtype != bucket[0].dtype or held >= BUCKET):
            yield bucket
            bucket, held = [], 0
        bucket.append(parameter)
        held += parameter.size * parameter.element_size()
    if bucket:
        yield bucket


@contextlib.contextmanager
def _other_ranks(what: str) -> Iterator[None]:
    """What fails while others are waited for comes from them."""
    try:
        yield
    except PeerLost:
        raise
    except Exception as error:
        text = str(error).strip().splitlines()
        raise PeerLost(f"another rank did not come to {what}: {text[-1] if text else type(error).__name__}") from error
