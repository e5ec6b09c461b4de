"""Our own CUDA kernels, where paddle has none; built only on request (LLMCTL_OPS_CUDA=1) and always optional.

They take paddle tensors on the GPU and run on paddle's stream. Shape suffixes: L rows, V vocabulary, S tokens, K key-value heads, H
head_dim.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl_ops.sampling import SamplerInput, SamplerOutput, fill, read_output
from llmctl_ops.structs import FLAG, POINTER, SIZE, SamplerRow

FILE = Path(__file__).with_name("libllmctl_ops_cuda.so")
DTYPES = ("float32", "float16", "bfloat16")


@functools.cache
def load() -> ctypes.CDLL | None:
    """The library of this process; None if it was not built or cannot be loaded."""
    return open_library(FILE)


def open_library(file: Path) -> ctypes.CDLL | None:
    """Loads the library in a file and declares its functions; None if there is none, or one of another version."""
    if not file.exists():
        return None
    try:
        library = ctypes.CDLL(str(file))
        library.llmctl_ops_cuda_row_size.restype = SIZE
        library.llmctl_ops_cuda_choose_bytes.argtypes = [SIZE, SIZE]
        library.llmctl_ops_cuda_choose_bytes.restype = SIZE
        library.llmctl_ops_cuda_choose.argtypes = [POINTER, POINTER, SIZE, SIZE, FLAG, POINTER, POINTER]
        library.llmctl_ops_cuda_quantize_kv.argtypes = [
            POINTER,
            FLAG,
            POINTER,
            SIZE,
            SIZE,
            SIZE,
            POINTER,
            POINTER,
            POINTER,
        ]
    except (OSError, AttributeError):
        return None
    return library if library.llmctl_ops_cuda_row_size() == ctypes.sizeof(SamplerRow) else None


def serves(tensor: Any) -> bool:
    """Whether there are kernels for this tensor: it is on a GPU and the library was built."""
    return bool(tensor.place.is_gpu_place()) and load() is not None


def quantize_kv(x_SKH: Any, slot_S: Any, codes: Any, scales: Any) -> None:
    """Writes keys or values into a KV cache as int8.

    Args:
        x_SKH: Keys or values in one of ``DTYPES``.
        slot_S: The slot of each token, int64.
        codes: The codes of the cache [slots, K, H], int8.
        scales: The scales of the cache [slots, K], float32.

    Raises:
        ValueError: The cache is not contiguous.
        RuntimeError: The kernel could not be launched.
    """
    library = load()
    assert library is not None, "only where serves() is true"
    if not (codes.is_contiguous() and scales.is_contiguous()):
        raise ValueError("quantize_kv writes to codes and scales in place, so they must be contiguous")
    # Slices of a product's output are views on GPUs.
    x_SKH, slot_S = x_SKH.contiguous(), slot_S.contiguous()
    dtype = DTYPES.index(str(x_SKH.dtype).rpartition(".")[2])
    slots, *cache = [x.data_ptr() for x in (slot_S, codes, scales)]
    _check(library.llmctl_ops_cuda_quantize_kv(x_SKH.data_ptr(), dtype, slots, *x_SKH.shape, *cache, _stream(x_SKH)))


def choose(logits_LV: Any, inputs: Sequence[SamplerInput], logprobs: bool = False) -> SamplerOutput:
    """Chooses a token for each row, as ``sampling.Sampler`` does; sums are rounded in another order.

    Args:
        logits_LV: A float32 tensor.
        inputs: One per row.
        logprobs: Whether to compute log-probabilities.

    Raises:
        RuntimeError: The kernel could not be launched.
    """
    import paddle

    library = load()
    assert library is not None, "only where serves() is true"
    logits_LV = logits_LV.contiguous()
    place, (rows, vocab) = logits_LV.place, logits_LV.shape
    structs, tokens = lay_out(inputs)
    tokens = paddle.to_tensor(tokens, place=place)
    move(structs, tokens.data_ptr())
    on_gpu = paddle.to_tensor(np.frombuffer(structs, np.uint8), place=place)
    buffer = paddle.empty([library.llmctl_ops_cuda_choose_bytes(rows, vocab) // 8], "float64")
    _check(
        library.llmctl_ops_cuda_choose(
            logits_LV.data_ptr(), on_gpu.data_ptr(), rows, vocab, logprobs, buffer.data_ptr(), _stream(logits_LV)
        )
    )
    return read_output(on_gpu.numpy().tobytes(), rows)


def lay_out(inputs: Sequence[SamplerInput]) -> tuple[Any, NDArray[np.int32]]:
    """The structs of all rows, and one array of the tokens that they point to.

    Returns:
        The structs, which hold offsets in bytes for addresses until ``move``, and the tokens.
    """
    structs = (SamplerRow * len(inputs))()
    arrays, offset = [], 0
    for row, given in zip(structs, inputs, strict=True):
        context, excluded = fill(row, given)
        row.context, row.excluded = offset, offset + context.nbytes
        offset += context.nbytes + excluded.nbytes
        arrays += [context, excluded]
    # One more, since an array of nothing has no address.
    return structs, np.concatenate([*arrays, np.zeros(1, np.int32)])


def move(structs: Any, address: int) -> None:
    """Makes structs of ``lay_out`` point to the tokens' address on the GPU."""
    for row in structs:
        row.context, row.excluded = (row.context or 0) + address, (row.excluded or 0) + address


def _stream(tensor: Any) -> int | None:
    """The CUDA stream of paddle for the tensor's device; None on a CPU."""
    import paddle

    if not tensor.place.is_gpu_place():
        return None
    return int(paddle.device.current_stream(tensor.place).stream_base.cuda_stream)


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"a CUDA kernel of paddle-llmctl-ops could not be launched: CUDA error {status}")
