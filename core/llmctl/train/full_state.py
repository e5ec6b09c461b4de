"""The full state of a run (model, optimizer, average) by name, as one process would have it, while each rank holds parts of it.

Rank 0 writes checkpoints and models as if it were alone: it reads whole tensors by name, and the other ranks answer what it asks for
until it is done. One tensor at a time is whole. Nothing that is written tells how many ranks there were.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from llmctl.checkpoint.formats.dtypes import STORAGE, widen
from llmctl.checkpoint.load import dtype_name
from llmctl.checkpoint.shards import merge, part_shape
from llmctl.io.json_object import parse_json
from llmctl.parallel.axis import Axis
from llmctl.parallel.collectives import all_gather, broadcast
from llmctl.parallel.mesh import Mesh
from llmctl.parallel.placement import Placement
from llmctl.parallel.slicing import Slicing

QUESTION_BYTES = 1024
"""Room for what rank 0 asks."""

PATIENCE = 10.0
"""Seconds without a question after which the others hear that there will be more: on CPUs they wait for 30 seconds only."""

END, MORE, NAMES, GET = "end", "more", "names", "get"
"""What rank 0 says: it is done; wait on; tell the names of a part of the state; give a tensor."""


@dataclass(frozen=True)
class Part:
    """A part of the state of a run on this rank.

    Attributes:
        read: Gives its tensors or arrays, by name.
        parameter: The parameter that a tensor belongs to and is cut like; None = it is the same on all ranks with that name.
        slicing: Name -> how a parameter is divided into slices, of which this rank has one; others are not.
    """

    read: Callable[[], Mapping[str, Any]]
    parameter: Callable[[str], str | None]
    slicing: Mapping[str, Slicing]


Where = tuple[int, int]
"""The stage that owns a tensor, and which one has it of the ranks that share experts; 0 = all of them."""


class WholeTensor:
    """A tensor that is whole when it is read; the other ranks must be answering then.

    Args:
        shape: Of the whole.
        dtype: As paddle names it.
        read: Reads it.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, read: Callable[[], NDArray[Any]]) -> None:
        self.shape, self.dtype, self._read = shape, dtype, read

    def numpy(self) -> NDArray[Any]:
        """The values; those of bfloat16 are the bits, as paddle gives them."""
        return self._read()

    def astype(self, dtype: str) -> paddle.Tensor:
        """A tensor with the values in another type."""
        values = self._read()
        return paddle.to_tensor(widen(values) if self.dtype == "bfloat16" else values).astype(dtype)


class FullState:
    """The full state, on rank 0.

    Args:
        mesh: The ranks; ``Mesh.lead`` makes the others answer.
        placement: Where parameters are.
        parts: The parts of the state, by name.
    """

    def __init__(self, mesh: Mesh, placement: Placement, parts: Mapping[str, Part]) -> None:
        self._mesh, self._placement, self._parts = mesh, placement, parts
        self._read: dict[str, Mapping[str, Any]] = {}
        self._lock, self._asked = threading.RLock(), False
        self._expert = mesh.axis("expert")
        axes = mesh.tensor, mesh.pipeline, mesh.sharding, self._expert
        self._divided = any(axis.size > 1 for axis in axes)
        mesh.lead_by(self.asking, self.answer)

    def state(self, part: str) -> dict[str, WholeTensor]:
        """Name -> tensor of one part of the state, on rank 0, inside of ``asking``."""
        if self._placement.elsewhere:
            self._ask(NAMES, part)
        return {name: self._tensor(part, name, *found) for name, found in sorted(self._names(part).items())}

    def _tensor(self, part: str, name: str, place: Where, shape: tuple[int, ...], dtype: str) -> WholeTensor:
        return WholeTensor(shape, dtype, lambda: self._get(part, name, place, shape, dtype))

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """On rank 0, the context in which tensors can be read while others answer."""
        over = threading.Event()
        waiter = threading.Thread(target=self._ask_for_patience, args=(over,), name="patience", daemon=True)
        if self._divided and not paddle.is_compiled_with_cuda():
            waiter.start()
        try:
            yield
        finally:
            over.set()
            if waiter.ident is not None:
                waiter.join()
            self._read.clear()
            if self._divided:
                self._ask(END)

    def answer(self) -> None:
        """On another rank: gives what rank 0 asks for, until it is done."""
        while self._divided:
            question = self._hear()
            if question["kind"] == END:
                break
            if question["kind"] == NAMES:
                self._names(question["part"])
            elif question["kind"] == GET:
                self._bring(question["part"], question["name"], question["place"], question["size"])
        self._read.clear()

    def _ask_for_patience(self, over: threading.Event) -> None:
        while not over.wait(PATIENCE):
            if not self._asked:
                self._ask(MORE)
            self._asked = False

    def _ask(self, kind: str, part: str = "", **more: Any) -> None:
        question = json.dumps({"kind": kind, "part": part, **more}).encode().ljust(QUESTION_BYTES)
        with self._lock:
            self._asked = True
            broadcast(paddle.to_tensor(np.frombuffer(question, np.uint8)), self._mesh.world)

    def _hear(self) -> dict[str, Any]:
        heard = broadcast(paddle.zeros([QUESTION_BYTES], "uint8"), self._mesh.world)
        question: dict[str, Any] = parse_json(heard.numpy().tobytes())
        return question

    def _get(self, part: str, name: str, place: Where, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """A whole tensor, on rank 0."""
        if not any(place) and not self._shared(part, name):
            return _array(self._here(part)[name])
        size = math.prod(shape) * STORAGE[dtype].itemsize
        # No question of the other thread comes between a question and its answer.
        with self._lock:
            self._ask(GET, part, name=name, place=place, size=size)
            found = self._bring(part, name, place, size)
        assert found is not None
        return found.view(STORAGE[dtype]).reshape(shape)

    def _bring(self, part: str, name: str, where: Where, size: int) -> NDArray[np.uint8] | None:
        """Brings the bytes of a tensor to rank 0.

        Args:
            part: The part of the state.
            name: Of the tensor.
            where: Who has it.
            size: Number of its bytes.
        """
        place, (owner, holder), found = self._mesh.place, where, None
        if place.pipeline == owner and self._first_slice(part, name) == holder and name in self._here(part):
            found = self._join(part, name)
        if holder and self._gathers and place.pipeline == owner:
            buffer = paddle.zeros([size], "uint8") if found is None else paddle.to_tensor(found)
            found = broadcast(buffer, self._expert, holder).numpy()
        if self._mesh.number or place.tensor:
            return None
        if owner and self._mesh.pipeline.size > 1:
            buffer = paddle.zeros([size], "uint8") if found is None else paddle.to_tensor(found)
            found = broadcast(buffer, self._mesh.pipeline, owner).numpy()
        return found

    def _first_slice(self, part: str, name: str) -> int:
        """The number, among the ranks with different rows, of the one with the first slice of a tensor that this one has."""
        parameter = self._parts[part].parameter(name)
        if parameter is None:
            return self._mesh.number
        topology = self._mesh.topology
        first, *_ = topology.peers(self._slices_of(parameter).name, self._mesh.rank.number)
        return topology.batch_number(first)

    def _slices_of(self, parameter: str) -> Axis:
        """The ranks that may have slices of a parameter."""
        return self._mesh.axis(self._placement.sharing(parameter).slices)

    def _join(self, part: str, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor of this stage; right on the rank with its first slice."""
        parameter, value = self._parts[part].parameter(name), self._here(part)[name]
        if parameter is not None:
            slicing, axis = self._parts[part].slicing.get(parameter), self._slices_of(parameter)
            if slicing is not None:
                value = slicing.whole(all_gather(_tensor(value), axis))
            if parameter in self._placement.splits and axis.rank == 0:
                value = self._joined_parts(parameter, _tensor(value))
        return np.ascontiguousarray(_array(value)).reshape(-1).view(np.uint8)

    def _joined_parts(self, parameter: str, value: paddle.Tensor) -> NDArray[Any]:
        """A parameter from the parts of the tensor ranks, which may be of unlike sizes."""
        rule, axis = self._placement.splits[parameter], self._mesh.tensor
        whole = self._placement.whole_shape(parameter, value.shape)
        shapes = [part_shape(whole, rule, rank, axis.size) for rank in range(axis.size)]
        most = max(math.prod(shape) for shape in shapes)
        flat = paddle.concat([value.reshape([-1]), paddle.zeros([most - value.size], value.dtype)])
        rows = all_gather(flat, axis).reshape([axis.size, most]).numpy()
        return merge(
            [row[: math.prod(shape)].reshape(shape) for row, shape in zip(rows, shapes, strict=True)], rule
        )  # fmt: skip

    def _here(self, part: str) -> Mapping[str, Any]:
        if part not in self._read:
            self._read[part] = self._parts[part].read()
        return self._read[part]

    def _shared(self, part: str, name: str) -> bool:
        """Whether ranks of this stage have parts of a tensor."""
        parameter = self._parts[part].parameter(name)
        return parameter is not None and (parameter in self._parts[part].slicing or parameter in self._placement.splits)

    @property
    def _gathers(self) -> bool:
        """Whether this rank is among the first ones that share experts."""
        return self._mesh.number < self._expert.size and not self._mesh.place.tensor

    def _names(self, part: str) -> dict[str, tuple[Where, tuple[int, ...], str]]:
        """Name -> who has a tensor, its whole shape and its type; of all ranks on their first ones."""
        own = {
            name: (self._whole_shape(part, name, value), dtype_name(value)) for name, value in self._here(part).items()
        }
        found: dict[str, tuple[Where, tuple[int, ...], str]] = {}
        for stage, holders in enumerate(self._heard(self._mesh.pipeline, self._heard(self._expert, own))):
            for holder, names in enumerate(holders):
                for name, (shape, dtype) in names.items():
                    found.setdefault(name, ((stage, holder), tuple(shape), dtype))
        return found

    def _heard(self, axis: Axis, value: Any) -> list[Any]:
        """What the ranks of an axis give, on those that rank 0 hears from."""
        if not self._gathers or (axis is not self._expert and self._mesh.number):
            return [value]
        return self._mesh.all_gather_object(value, axis)

    def _whole_shape(self, part: str, name: str, value: Any) -> tuple[int, ...]:
        parameter = self._parts[part].parameter(name)
        if parameter is None:
            return tuple(value.shape)
        slicing = self._parts[part].slicing.get(parameter)
        return self._placement.whole_shape(parameter, slicing.shape if slicing else value.shape)


def _array(value: Any) -> NDArray[Any]:
    return value if isinstance(value, np.ndarray) else np.asarray(value.numpy())


def _tensor(value: Any) -> paddle.Tensor:
    return paddle.to_tensor(value) if isinstance(value, np.ndarray) else value.detach()
