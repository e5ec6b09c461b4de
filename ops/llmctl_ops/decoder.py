"""A whole step of a decoder in one native call. No paddle here.

The structures are those of csrc/cpu/model.h, field by field. ``Decoder`` owns the cache and every buffer; what it is made of
belongs to the caller, who fills ``Model``. Letters: T tokens of a step, R sequences, M blocks of a sequence, L tokens whose
logits are wanted, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl_ops import library
from llmctl_ops.linear import Native as Linear

POINTER, SIZE, FLOAT, FLAG = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32

ACTIVATIONS = ("swiglu", "gelu", "gelu-tanh", "relu")


class Norm(ctypes.Structure):
    """Weight and bias of a norm; no weight = no norm."""

    _fields_ = (("weight", POINTER), ("bias", POINTER))


class Change(ctypes.Structure):
    """A low-rank change: a [in, wide rank], b [rank, wide out], both filled up with zeros to multiples of 16."""

    _fields_ = (("a", POINTER), ("b", POINTER), ("rank", SIZE))


class Layer(ctypes.Structure):
    """One layer; ``up`` and ``down`` point to a Linear for each expert, changes to one for each adapter (and expert)."""

    _fields_ = (
        ("norm", Norm),
        ("ffn_norm", Norm),
        ("qkv", Linear),
        ("out", Linear),
        *((name, POINTER) for name in ("up", "down", "router", "q_norm", "k_norm")),
        *((f"{name}_changes", POINTER) for name in ("qkv", "out", "up", "down")),
        ("score_scale", FLOAT),
    )


class Model(ctypes.Structure):
    """A model; ``turned`` counts elements of a head, ``halves`` says that the second half has positions of its own."""

    _fields_ = (
        *((name, POINTER) for name in ("layer", "embed", "positions", "slopes")),
        ("embed_norm", Norm),
        ("final_norm", Norm),
        *((name, Linear) for name in ("project_in", "project_out", "head")),
        *((name, SIZE) for name in ("layers", "hidden", "heads", "groups", "width", "ffn", "vocab", "embed_width")),
        *((name, SIZE) for name in ("position_rows", "turned", "experts", "top_k", "adapters")),
        *((name, FLOAT) for name in ("eps", "carry_scale")),
        *((name, FLAG) for name in ("embed_bf16", "layer_norm", "activation", "norm_after", "carry_normed")),
        *((name, FLAG) for name in ("halves", "renormalize", "cache_int8")),
    )


class Step(ctypes.Structure):
    """A step: arrays of int32, tables of angles in float32, and where the logits go."""

    _fields_ = (
        *((name, POINTER) for name in ("ids", "row", "place", "position", "second", "begin", "end")),
        *((name, POINTER) for name in ("blocks", "adapter", "wanted", "cosine", "sine", "query_scale", "logits")),
        *((name, SIZE) for name in ("tokens", "rows", "most_blocks", "wanted_count", "angle_rows")),
    )


FAULTS = {
    2: "the number of tokens is not between 1 and what the decoder was opened for, or more logits are wanted than there are tokens",
    3: "token {}: its id is not in the vocabulary",
    4: "token {}: its sequence is none of the block table",
    5: "token {}: its place is not in the blocks of its sequence",
    6: "token {}: it must see from 0 on at least one place, and none past the blocks of its sequence",
    7: "token {}: a block of its sequence is none of the cache",
    8: "token {}: its position is below 0 or past the table",
    9: "sequence {}: its adapter is none of the model",
    10: "wanted token {}: it is none of the step, or not after the one before",
}
"""What each status of a step means; 0 = done, 1 = no memory."""


class Decoder:
    """An open decoder.

    Args:
        model: What it is made of.
        tokens: The most tokens of a step.
        owned: Whatever must live as long as the decoder: the arrays that ``model`` points to.

    Raises:
        RuntimeError: There is no compiled library.
        MemoryError: No memory for its buffers.
    """

    def __init__(self, model: Model, tokens: int, owned: Any = None) -> None:
        if library.load().handle is None:
            raise RuntimeError(f"there are no compiled kernels: {library.load().why}")
        self._owned, self._model = owned, model
        self._step = _kernel("step", POINTER, POINTER, POINTER)
        self._where, self._at = ctypes.c_int64(), 0
        opened = ctypes.c_void_p()
        _done(_kernel("open", POINTER, SIZE, POINTER)(ctypes.addressof(model), tokens, ctypes.addressof(opened)))
        self._at = opened.value
        self._place = ctypes.addressof(self._where)

    @property
    def block_bytes(self) -> int:
        """Memory of one block over all layers."""
        found = ctypes.c_int64()
        _kernel("block_bytes", POINTER, POINTER)(self._at, ctypes.addressof(found))
        return found.value

    def allocate(self, blocks: int) -> None:
        """Makes room for so many blocks; what the cache held is lost.

        Raises:
            ValueError: Fewer than one.
            MemoryError: There is no such room.
        """
        if blocks < 1:
            raise ValueError(f"blocks={blocks} must be at least 1")
        # A larger number would be cut to 64 bits on its way.
        _done(blocks.bit_length() > 63 or _kernel("allocate", POINTER, SIZE)(self._at, blocks))

    def copy(self, source: int, target: int) -> None:
        """Copies a block.

        Raises:
            ValueError: There is no such block.
        """
        if _kernel("copy", POINTER, SIZE, SIZE)(self._at, source, target):
            raise ValueError(f"block {source} cannot be copied to {target}: one of them is none of the cache")

    def put(self, blocks: NDArray[np.int32], pairs: NDArray[np.float32]) -> None:
        """Writes keys and values [layers, 2, places, key-value heads, width] to the places from 0 on of these blocks.

        Raises:
            ValueError: Another shape, too few blocks, or a block that is none of the cache.
        """
        shape, model = pairs.shape, self._model
        if len(shape) != 5 or (*shape[:2], *shape[3:]) != (model.layers, 2, model.groups, model.width):
            raise ValueError(
                f"keys and values are {list(shape)}, not [{model.layers}, 2, places, {model.groups}, {model.width}]"
            )
        if len(blocks) * 16 < shape[2]:
            raise ValueError(f"{len(blocks)} blocks of 16 places do not hold {shape[2]}")
        blocks, pairs = np.ascontiguousarray(blocks, np.int32), np.ascontiguousarray(pairs, np.float32)
        put = _kernel("put", POINTER, POINTER, POINTER, SIZE)
        if put(self._at, blocks.ctypes.data, pairs.ctypes.data, shape[2]):
            raise ValueError(f"blocks {blocks.tolist()}: one of them is none of the cache")

    def step(self, step: Step) -> None:
        """Computes a step.

        Raises:
            ValueError: It would read or write past the end of something.
        """
        status = self._step(self._at, ctypes.addressof(step), self._place)
        if status in FAULTS:
            raise ValueError(FAULTS[status].format(self._where.value))
        _done(status)

    def close(self) -> None:
        """Gives all memory back; the decoder is of no use afterwards."""
        if self._at:
            _kernel("close", POINTER)(self._at)
            self._at = 0

    def __del__(self) -> None:
        if getattr(self, "_at", 0):
            self.close()


def _kernel(name: str, *types: type) -> Callable[..., int]:
    kernel = library.load().kernel(f"decoder_{name}", *types)
    assert kernel is not None
    return kernel


def _done(status: int) -> None:
    if status:
        raise MemoryError("there is no memory for the decoder's buffers or cache")
