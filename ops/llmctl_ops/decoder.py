"""A whole decoder step in one native call. No paddle here.

``Decoder`` owns the KV cache and every buffer; the caller fills ``structs.Model`` and owns the arrays that it points to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl_ops import library
from llmctl_ops.structs import POINTER, SIZE, Model, Step

ACTIVATIONS = ("swiglu", "gelu", "gelu-tanh", "relu")

CACHES = ("float32", "float16", "int8")
"""Types of the KV cache; int8 has a scale for each position and head."""

BLOCK = 16
"""KV positions of a cache block."""

STEP_ERRORS = {
    2: "the step has no tokens, more than the decoder was opened for, or fewer than the logits that are asked for",
    3: "token {}: id is not in the vocabulary",
    4: "token {}: sequence is not a row of the block tables",
    5: "token {}: kv_position is not in the blocks of its sequence",
    6: "token {}: attention range is empty or not within the blocks of its sequence",
    7: "token {}: block index of its sequence is out of range of the cache",
    8: "token {}: position is negative or beyond the table of positions or angles",
    9: "sequence {}: adapter index out of range",
    10: "logits index {}: not a token of the step, or not greater than the previous one",
}
"""Status of a step -> what is wrong; 0 = done, 1 = no memory."""

MODEL_ERRORS = {
    32: "a size is less than 1 or too large",
    33: "heads is no multiple of kv_heads, or heads of this size are too many",
    34: "rotary_dim is no multiple of the pairs, or more than head_dim",
    35: "top_k is not from 1 to the number of experts",
    36: "a linear does not have the shape, kind or scales that the model needs",
    37: "a norm, router, LoRA delta or table that the model needs is absent, or one that it does not need is there",
    38: "a number is not finite, or the activation or type of the cache is unknown",
}
"""Status of a model -> what is wrong."""


class Decoder:
    """An open decoder.

    Args:
        model: The model.
        tokens: The most tokens of a step.
        owned: Kept alive as long as the decoder: the arrays that ``model`` points to.

    Raises:
        RuntimeError: There is no compiled library.
        ValueError: The model's sizes, parts or numbers are impossible.
        MemoryError: No memory for its buffers.
    """

    def __init__(self, model: Model, tokens: int, owned: Any = None) -> None:
        if library.load().handle is None:
            raise RuntimeError(f"there are no compiled kernels: {library.load().why}")
        self._owned, self._model = owned, model
        self._step = _kernel("step", POINTER, POINTER, POINTER)
        self._where, self._address = ctypes.c_int64(), 0
        opened = ctypes.c_void_p()
        # ctypes would truncate a larger number to 64 bits.
        tokens = min(tokens, 2**62)
        status = _kernel("open", POINTER, SIZE, POINTER)(ctypes.addressof(model), tokens, ctypes.addressof(opened))
        if status in MODEL_ERRORS:
            raise ValueError(f"the model cannot be computed: {MODEL_ERRORS[status]}")
        _check(status)
        self._address = opened.value
        self._where_address = ctypes.addressof(self._where)

    @property
    def block_bytes(self) -> int:
        """Bytes of one cache block over all layers."""
        found = ctypes.c_int64()
        _kernel("block_bytes", POINTER, POINTER)(self._address, ctypes.addressof(found))
        return found.value

    def allocate(self, blocks: int) -> None:
        """Allocates an empty cache; the contents of the previous one are lost.

        Raises:
            ValueError: Fewer than one block.
            MemoryError: No memory for this many.
        """
        if blocks < 1:
            raise ValueError(f"blocks={blocks} must be at least 1")
        # ctypes would truncate a larger number to 64 bits.
        _check(blocks.bit_length() > 63 or _kernel("allocate", POINTER, SIZE)(self._address, blocks))

    def copy(self, source: int, target: int) -> None:
        """Copies a block.

        Raises:
            ValueError: A block index is out of range.
        """
        if _kernel("copy", POINTER, SIZE, SIZE)(self._address, source, target):
            raise ValueError(f"cannot copy block {source} to {target}: block index out of range of the cache")

    def put(self, blocks: NDArray[np.int32], pairs: NDArray[np.float32]) -> None:
        """Writes keys and values [layers, 2, positions, kv_heads, head_dim] to the KV positions from 0 on of these blocks.

        Raises:
            ValueError: Another shape, too few blocks, or a block index out of range.
        """
        shape, model = pairs.shape, self._model
        if len(shape) != 5 or (*shape[:2], *shape[3:]) != (model.layers, 2, model.kv_heads, model.head_dim):
            raise ValueError(
                f"keys and values are {list(shape)}, not [{model.layers}, 2, positions, {model.kv_heads}, {model.head_dim}]"
            )
        if len(blocks) * BLOCK < shape[2]:
            raise ValueError(f"{len(blocks)} blocks of {BLOCK} positions do not hold {shape[2]}")
        blocks, pairs = np.ascontiguousarray(blocks, np.int32), np.ascontiguousarray(pairs, np.float32)
        put = _kernel("put", POINTER, POINTER, POINTER, SIZE)
        if put(self._address, blocks.ctypes.data, pairs.ctypes.data, shape[2]):
            raise ValueError(f"blocks {blocks.tolist()}: block index out of range of the cache")

    def step(self, step: Step) -> None:
        """Computes a step.

        Raises:
            ValueError: It would read or write out of bounds.
        """
        status = self._step(self._address, ctypes.addressof(step), self._where_address)
        if status in STEP_ERRORS:
            raise ValueError(STEP_ERRORS[status].format(self._where.value))
        _check(status)

    def close(self) -> None:
        """Frees all memory; the decoder cannot be used afterwards."""
        if self._address:
            _kernel("close", POINTER)(self._address)
            self._address = 0

    def __del__(self) -> None:
        if getattr(self, "_address", 0):
            self.close()


def _kernel(name: str, *types: type) -> Callable[..., int]:
    kernel = library.load().kernel(f"decoder_{name}", *types)
    assert kernel is not None
    return kernel


def _check(status: int) -> None:
    if status:
        raise MemoryError("no memory for the decoder's buffers or cache")
