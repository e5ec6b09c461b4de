"""What Paddle's gloo lacks on CPUs, supplied at one place: the object behind a group of ranks. No other module knows a backend.

Paddle 3.3 has four gaps there:

1. A group keeps the addresses of its ranks under keys that do not name the group, so that a second group finds those of the first.
   Here each group has a store of its own, whose address is told through the common one.
2. The operations of a group are numbered: a message between two of its ranks puts these out of step with the others. And a send
   waits until it is received. Here messages go through groups of two, one for each direction, and are sent by a thread.
3. There is no reduce_scatter and no all_to_all, no average, no sum of float16, and no form "on the calculation stream". Here they
   are made of all_reduce and all_gather, which costs traffic and memory.
4. The thread that moves a group's messages asks without pause for a lock that the thread which sends holds. Where it interrupted
   that one, on the same core, each message costs the rest of its time slice, 4 ms. Here it interrupts none.

``tests/unit/parallel/test_gloo.py`` has a test of each gap, which fails once Paddle has closed it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import paddle
from paddle.base import core
from paddle.distributed import collective, parallel

from llmctl.parallel import stores

NCCL_WITH_AVERAGES = 21000
"""The version that Paddle asks for before it averages, of a library that a CPU has not."""

_paddle_group = collective._new_process_group_impl


def install() -> None:
    """Makes Paddle's groups complete; must come before the first is made. Groups of other backends stay as they are."""
    os.environ.setdefault("PADDLE_DISTRI_BACKEND", "gloo")
    collective._new_process_group_impl = parallel._new_process_group_impl = _new_group
    if not hasattr(parallel.ParallelEnv, "_device_id"):
        parallel.ParallelEnv._device_id = 0
    if not hasattr(core, "nccl_version"):
        core.nccl_version = lambda: NCCL_WITH_AVERAGES


def _new_group(backend: str, store: Any, rank: int, size: int, *names: Any, group_id: int = 0, **more: Any) -> Any:
    """In place of ``paddle.distributed.collective._new_process_group_impl``."""
    if backend != "gloo":
        return _paddle_group(backend, store, rank, size, *names, group_id=group_id, **more)
    # The first group may have the common store to itself.
    own = stores.own(f"group/{group_id}", store, rank == 0) if group_id else store
    return Gloo(_connected(own, rank, size, group_id), own, rank, size, group_id)


def _connected(*args: Any) -> Any:
    """Paddle's group, as ``core.ProcessGroupGloo.create`` makes it."""
    with _patient_threads():
        return core.ProcessGroupGloo.create(*args)


@contextlib.contextmanager
def _patient_threads() -> Iterator[None]:
    """Threads that start inside do not interrupt a running thread when they wake, where the system can do that (Linux)."""
    if not hasattr(os, "SCHED_BATCH") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class Done:
    """An operation that is over."""

    def wait(self, *args: Any) -> bool:
        """Returns at once."""
        return True

    synchronize = is_completed = wait


class Later:
    """An operation in another thread."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._error: Exception | None = None

    def finish(self, work: Callable[[], object]) -> None:
        """Does the work, whose error ``wait`` raises."""
        try:
            work()
        except Exception as error:
            self._error = error
        self._over.set()

    def wait(self, *args: Any) -> bool:
        """Waits until it is over."""
        self._over.wait()
        if self._error:
            raise self._error
        return True

    synchronize = wait

    def is_completed(self) -> bool:
        """Whether it is over."""
        return self._over.is_set()


class Direction:
    """Messages from one rank to another, in order, by a thread with a group of its own.

    Args:
        key: Names the direction for both ranks.
        group_id: Number of the group.
        sends: Whether this rank is the one that sends.
    """

    def __init__(self, key: str, group_id: int, sends: bool) -> None:
        self._key, self._group_id, self._sends = key, group_id, sends
        self._queue: queue.Queue[tuple[Later, paddle.Tensor]] = queue.Queue()
        threading.Thread(target=self._run, name=f"messages {key}", daemon=True).start()

    def put(self, tensor: paddle.Tensor) -> Later:
        """Sends the tensor, or receives into it."""
        task = Later()
        self._queue.put((task, tensor))
        return task

    def _run(self) -> None:
        pair: Any = None

        def move() -> None:
            nonlocal pair
            if pair is None:
                pair = self._connect()
            (pair.send if self._sends else pair.recv)(tensor, int(self._sends), True)

        while True:
            task, tensor = self._queue.get()
            task.finish(move)

    def _connect(self) -> Any:
        self._store = stores.own(self._key, stores.connection(), self._sends)
        return _connected(self._store, int(not self._sends), 2, self._group_id)


class Gloo:
    """A process group with all operations that ``paddle.distributed`` asks of one.

    Their arguments are those of Paddle's; all are synchronous but ``send`` and ``recv``.

    Args:
        group: Paddle's own.
        store: Of this group; kept alive.
        rank: The place of this process in the group.
        size: Number of ranks.
        group_id: Number of the group, alike on all its ranks.
    """

    def __init__(self, group: Any, store: Any, rank: int, size: int, group_id: int) -> None:
        self._group, self._store = group, store
        self._rank, self._size, self._id = rank, size, group_id
        self._directions: dict[tuple[int, int], Direction] = {}
        self._batch: list[Later] | None = None

    def __getattr__(self, name: str) -> Any:
        own = name.removesuffix("_on_calc_stream")
        return getattr(self._group if own == name else self, own)

    def send(self, tensor: paddle.Tensor, dst: int, sync_op: bool = True) -> Done:
        """Returns at once: the tensor is copied."""
        self._direction(self._rank, dst).put(tensor.detach().clone())
        return Done()

    def recv(self, tensor: paddle.Tensor, src: int, sync_op: bool = True) -> Later:
        """Returns at once; ``wait`` returns when the tensor is there."""
        return self._direction(src, self._rank).put(tensor)

    def recv_on_calc_stream(self, tensor: paddle.Tensor, src: int) -> Done:
        """Waits, in a batch at its end."""
        task = self.recv(tensor, src)
        if self._batch is None:
            task.wait()
        else:
            self._batch.append(task)
        return Done()

    def send_partial(self, tensor: paddle.Tensor, dst: int, parts: int, part: int, sync_op: bool = True) -> Done:
        """Sends one of equal parts of a tensor."""
        return self.send(_part(tensor, parts, part), dst)

    def recv_partial(self, tensor: paddle.Tensor, src: int, parts: int, part: int, sync_op: bool = True) -> Done:
        """Receives one of equal parts of a tensor."""
        flat = tensor.detach().flatten()
        rows = flat.shape[0] // parts
        received = flat[part * rows : (part + 1) * rows].clone()
        self.recv(received, src).wait()
        whole = paddle.concat([flat[: part * rows], received, flat[(part + 1) * rows :]])
        _write(tensor, whole.reshape(tensor.shape))
        return Done()

    def _direction(self, sender: int, receiver: int) -> Direction:
        key = sender, receiver
        if key not in self._directions:
            name = f"messages/{self._id}/{sender}>{receiver}"
            number = (self._id + 1) * 1_000_000 + sender * 1_000 + receiver
            self._directions[key] = Direction(name, number, sender == self._rank)
        return self._directions[key]

    def _start_coalescing(self) -> None:
        self._batch = []

    def _end_coalescing(self, tasks: object = None) -> None:
        batch, self._batch = self._batch, None
        for task in batch or ():
            task.wait()

    def all_reduce(self, tensor: paddle.Tensor, op: Any, sync_op: bool = True) -> Done:
        """Replaces the tensor by the sum, mean, maximum or minimum over the ranks."""
        if tensor.dtype == paddle.float16:
            wide = tensor.astype("float32")
            self.all_reduce(wide, op)
            _write(tensor, wide.astype("float16"))
            return Done()
        average = op == core.ReduceOp.AVG
        self._group.all_reduce(tensor, core.ReduceOp.SUM if average else op, True)
        if average:
            tensor.scale_(1 / self._size)
        return Done()

    def all_gather(self, outs: list[paddle.Tensor], tensor: paddle.Tensor, sync_op: bool = True) -> Done:
        """Every rank's tensor."""
        self._group.all_gather(outs, tensor, True)
        return Done()

    def all_gather_into_tensor(self, out: paddle.Tensor, tensor: paddle.Tensor, sync_op: bool = True) -> Done:
        """Every rank's tensor, one after the other."""
        self._group.all_gather_into_tensor(out, tensor, True)
        return Done()

    def all_gather_partial(
        self, out: paddle.Tensor, tensor: paddle.Tensor, parts: int, part: int, sync_op: bool = True
    ) -> Done:
        """Every rank's one of equal parts of a tensor, one after the other."""
        return self.all_gather_into_tensor(out, _part(tensor, parts, part).clone())

    def broadcast(self, tensor: paddle.Tensor, src: int, sync_op: bool = True) -> Done:
        """Replaces the tensor by that of one rank."""
        self._group.broadcast(tensor, src, True)
        return Done()

    def reduce(self, tensor: paddle.Tensor, dst: int, op: Any, sync_op: bool = True) -> Done:
        """As ``all_reduce``, on one rank; what the others hold is undefined."""
        return self.all_reduce(tensor, op)

    def scatter_tensor(self, out: paddle.Tensor, tensor: paddle.Tensor, src: int, sync_op: bool = True) -> Done:
        """This rank's part of one rank's tensor."""
        self._group.scatter_tensor(out, tensor, src, True)
        return Done()

    def scatter(self, out: paddle.Tensor, parts: list[paddle.Tensor], src: int, sync_op: bool = True) -> Done:
        """This rank's one of the tensors of one rank."""
        self._group.scatter(out, parts, src, True)
        return Done()

    def gather(self, tensor: paddle.Tensor, outs: list[paddle.Tensor], dst: int, *sync: bool) -> Done:
        """Every rank's tensor, on one rank."""
        self._group.gather(tensor, outs, dst, True)
        return Done()

    def reduce_scatter_tensor(self, out: paddle.Tensor, tensor: paddle.Tensor, op: Any, sync_op: bool = True) -> Done:
        """This rank's rows of what ``all_reduce`` gives."""
        whole = tensor.detach().clone()
        self.all_reduce(whole, op)
        rows = whole.shape[0] // self._size
        _write(out, whole[self._rank * rows : (self._rank + 1) * rows].reshape(out.shape))
        return Done()

    def reduce_scatter(self, out: paddle.Tensor, parts: Sequence[paddle.Tensor], op: Any, sync_op: bool = True) -> Done:
        """The sum, over the ranks, of the part that is for this rank."""
        return self.reduce_scatter_tensor(out, paddle.stack(list(parts)).flatten(0, 1), op)

    def all_to_all(self, outs: list[paddle.Tensor], parts: Sequence[paddle.Tensor], sync_op: bool = True) -> Done:
        """Gives every rank its part, which may have any number of rows: all hear all, and keep what is for them."""
        sizes = paddle.to_tensor([part.shape[0] for part in parts])
        told = [paddle.empty_like(sizes) for _ in range(self._size)]
        self._group.all_gather(told, sizes, True)
        rows = [one.tolist() for one in told]
        most = max(map(sum, rows))
        if not most:
            return Done()
        mine = paddle.concat(list(parts))
        missing = paddle.zeros([most - mine.shape[0], *mine.shape[1:]], mine.dtype)
        padded = paddle.concat([mine, missing])
        heard = [paddle.empty_like(padded) for _ in range(self._size)]
        self._group.all_gather(heard, padded, True)
        for out, counts, all_parts in zip(outs, rows, heard, strict=True):
            first, count = sum(counts[: self._rank]), counts[self._rank]
            if count:
                _write(out, all_parts[first : first + count])
        return Done()

    def all_to_all_tensor(self, out: paddle.Tensor, tensor: paddle.Tensor, sync_op: bool = True) -> Done:
        """``all_to_all`` of equal parts that are one after the other."""
        rows = [tensor.shape[0] // self._size] * self._size
        return self.all_to_all_single(out, tensor, rows, rows)

    def all_to_all_single(
        self,
        out: paddle.Tensor,
        tensor: paddle.Tensor,
        out_rows: Sequence[int],
        rows: Sequence[int],
        sync_op: bool = True,
    ) -> Done:
        """``all_to_all`` of parts that are one after the other."""
        if not rows:
            return self.all_to_all_tensor(out, tensor)
        self.all_to_all(_cut(out, out_rows), _cut(tensor, rows))
        return Done()


def _part(tensor: paddle.Tensor, parts: int, part: int) -> paddle.Tensor:
    """One of equal parts of a tensor."""
    return paddle.split(tensor.detach().flatten(), parts)[part]


def _cut(tensor: paddle.Tensor, rows: Sequence[int]) -> list[paddle.Tensor]:
    """Stretches of rows of a tensor, in its memory, also where Paddle's slices are copies."""
    starts = [sum(rows[:index]) for index in range(len(rows))]
    return [tensor.detach()._slice(start, start + count) for start, count in zip(starts, rows, strict=True)]


@paddle.no_grad()
def _write(tensor: paddle.Tensor, value: paddle.Tensor) -> None:
    """Into the memory of a tensor, which may be a stretch of another's."""
    tensor.copy_(value, True)
