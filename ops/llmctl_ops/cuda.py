"""Kernels of our own for GPUs, where paddle has none; built if asked for (LLMCTL_OPS_CUDA=1) and never needed.

They take paddle tensors that lie on the GPU and run on paddle's stream. Letters: L rows, V vocabulary, S places, K heads, H
width of a head.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmctl_ops.sampling import NONE, Choice, Chosen, Native, chosen_of, fill

FILE = Path(__file__).with_name("libllmctl_ops_cuda.so")
KINDS = ("float32", "float16", "bfloat16")
POINTER, SIZE, FLAG = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


@functools.cache
def load() -> ctypes.CDLL | None:
    """The library of this process; None where it was not built or cannot be loaded."""
    return open_library(FILE)


def open_library(file: Path) -> ctypes.CDLL | None:
    """The library in a file, its functions with their types; None where there is none."""
    if not file.exists():
        return None
    try:
        library = ctypes.CDLL(str(file))
    except OSError:
        return None
    library.llmctl_ops_cuda_choose_bytes.argtypes = [SIZE, SIZE]
    library.llmctl_ops_cuda_choose_bytes.restype = SIZE
    library.llmctl_ops_cuda_choose.argtypes = [POINTER, POINTER, SIZE, SIZE, FLAG, POINTER, POINTER]
    library.llmctl_ops_cuda_narrow.argtypes = [POINTER, FLAG, POINTER, SIZE, SIZE, SIZE, POINTER, POINTER, POINTER]
    return library


def serves(tensor: Any) -> bool:
    """Whether there are kernels for this tensor: it lies on a GPU and the library was built."""
    return bool(tensor.place.is_gpu_place()) and load() is not None


def narrow(x_SKH: Any, slot_S: Any, codes: Any, units: Any) -> None:
    """Writes keys or values into a cache in 8 bits.

    Args:
        x_SKH: Of one of ``KINDS``.
        slot_S: Where each place goes, int64.
        codes: The cache's codes [slots, K, H], int8.
        units: What their heads' codes count in [slots, K], float32.

    Raises:
        ValueError: The cache is a view with gaps.
        RuntimeError: The kernel could not be started.
    """
    library = load()
    assert library is not None, "serves() said that there are kernels"
    if not (codes.is_contiguous() and units.is_contiguous()):
        raise ValueError("narrow writes to codes and units in place, so they must be contiguous")
    # Parts of a product's output are views on GPUs.
    x_SKH, slot_S = x_SKH.contiguous(), slot_S.contiguous()
    kind = KINDS.index(str(x_SKH.dtype).rpartition(".")[2])
    pointers = [x.data_ptr() for x in (slot_S, codes, units)]
    places, heads, width = x_SKH.shape
    _done(
        library.llmctl_ops_cuda_narrow(
            x_SKH.data_ptr(), kind, pointers[0], places, heads, width, *pointers[1:], _stream(x_SKH)
        )
    )


def choose(logits_LV: Any, choices: Sequence[Choice], logprobs: bool = False) -> Chosen:
    """A token for each row, as ``sampling.Sampler`` chooses them; sums round in another order.

    Args:
        logits_LV: A float32 tensor.
        choices: L of them.
        logprobs: Whether log-probabilities are wanted.

    Raises:
        RuntimeError: The kernel could not be started.
    """
    import paddle

    library = load()
    assert library is not None, "serves() said that there are kernels"
    logits_LV = logits_LV.contiguous()
    place, (rows, vocab) = logits_LV.place, logits_LV.shape
    held = (Native * rows)()
    lists = [array for native, choice in zip(held, choices, strict=True) for array in fill(native, choice)]
    tokens = paddle.to_tensor(np.concatenate([*lists, NONE, np.zeros(1, np.int32)]), place=place)
    address = tokens.data_ptr()
    for native, context, excluded in zip(held, lists[::2], lists[1::2], strict=True):
        native.context, native.ends = address, address + context.nbytes
        address += context.nbytes + excluded.nbytes
    given = paddle.to_tensor(np.frombuffer(held, np.uint8), place=place)
    buffer = paddle.empty([library.llmctl_ops_cuda_choose_bytes(rows, vocab) // 8], "float64")
    _done(
        library.llmctl_ops_cuda_choose(
            logits_LV.data_ptr(), given.data_ptr(), rows, vocab, logprobs, buffer.data_ptr(), _stream(logits_LV)
        )
    )
    return chosen_of(given.numpy().tobytes(), rows)


def _stream(tensor: Any) -> int | None:
    """The stream that paddle computes the tensor on."""
    import paddle

    if not tensor.place.is_gpu_place():
        return None
    return int(paddle.device.current_stream(tensor.place).stream_base.cuda_stream)


def _done(status: int) -> None:
    if status:
        raise RuntimeError(f"a kernel of llmctl-ops for GPUs could not be started: CUDA error {status}")
