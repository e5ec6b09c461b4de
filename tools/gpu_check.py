"""Builds our CUDA kernels and compares them with numpy on a GPU: minutes, without paddle.

Run with: python tools/gpu_check.py [--output FILE.json]; needs a clone, nvcc, numpy and torch or cupy, which hold the arrays on
the GPU. Exit status: 0 = all equal, 1 = something differs, 2 = it cannot be run here. Times are medians; that of quantize_kv has
a copy of as many bytes beside it. Shape suffixes: L rows, V vocabulary, S tokens, K key-value heads, H head_dim.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "core"), str(ROOT / "ops"), str(ROOT / "tests")]

from kit.sampling_forms import FORMS  # noqa: E402

from cuda_build import build  # noqa: E402  (ops is no package)
from llmctl.infer.sampling.reference import choose_one  # noqa: E402
from llmctl.infer.sampling.rows import SamplerInput  # noqa: E402
from llmctl_ops import cuda, sampling  # noqa: E402

ROWS, VOCAB = 8, 152064
"""L and V of the logits: a batch of Qwen2."""
TOKENS, HEADS, HEAD_DIM = 4096, 8, 128
"""S, K and H of the keys: a prompt of Llama 3."""


class Memory(Protocol):
    """Arrays on the device."""

    def put(self, array: Any) -> tuple[Any, int]:
        """Copies a numpy array to the device: what holds it, and its address."""

    def get(self, held: Any) -> Any:
        """The numpy array of what ``put`` returned."""

    def wait(self) -> None:
        """Waits until the device has done all that was asked of it."""

    def copy(self, held: Any) -> Any:
        """A copy on the device."""


class TorchMemory:
    """Arrays held by torch."""

    def __init__(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise ImportError("torch sees no GPU")
        self._torch = torch
        self.name = f"torch {torch.__version__}"

    def put(self, array: Any) -> tuple[Any, int]:
        held = self._torch.from_numpy(np.ascontiguousarray(array)).cuda()
        return held, held.data_ptr()

    def get(self, held: Any) -> Any:
        return held.cpu().numpy()

    def wait(self) -> None:
        self._torch.cuda.synchronize()

    def copy(self, held: Any) -> Any:
        return held.clone()


class CupyMemory:
    """Arrays held by cupy."""

    def __init__(self) -> None:
        import cupy

        if not cupy.cuda.is_available():
            raise ImportError("cupy sees no GPU")
        self._cupy = cupy
        self.name = f"cupy {cupy.__version__}"

    def put(self, array: Any) -> tuple[Any, int]:
        held = self._cupy.asarray(array)
        return held, held.data.ptr

    def get(self, held: Any) -> Any:
        return self._cupy.asnumpy(held)

    def wait(self) -> None:
        self._cupy.cuda.Device().synchronize()

    def copy(self, held: Any) -> Any:
        return held.copy()


@dataclasses.dataclass(frozen=True)
class Result:
    """One comparison with numpy.

    Attributes:
        name: What was compared.
        difference: The largest difference; infinite where tokens or codes differ more than they may.
        allowed: The largest that counts as equal.
        milliseconds: Median time of a call; None where it was not timed.
        copy_milliseconds: Median time of a copy on the GPU of the bytes that the call reads.
    """

    name: str
    difference: float
    allowed: float
    milliseconds: float | None = None
    copy_milliseconds: float | None = None

    @property
    def equal(self) -> bool:
        """Whether the device computes what numpy does; not if the difference is no number."""
        return self.difference <= self.allowed


def check(library: ctypes.CDLL, memory: Memory, shape: Sequence[int], rounds: int) -> list[Result]:
    """Compares all kernels of a library with numpy.

    Args:
        library: From ``llmctl_ops.cuda.open_library``.
        memory: What holds the arrays.
        shape: L, V, S, K and H.
        rounds: How often a call is timed.
    """
    rows, vocab, *keys = shape
    found = [_sampling(library, memory, rows, vocab, name, rounds) for name in FORMS]
    return found + [_quantize_kv(library, memory, keys, dtype, rounds) for dtype in cuda.DTYPES]


def _sampling(library: ctypes.CDLL, memory: Memory, rows: int, vocab: int, name: str, rounds: int) -> Result:
    """One way of sampling: equal tokens and statuses, and log-probabilities whose sums were rounded in another order."""
    random = np.random.default_rng(0)
    logits_LV = (3 * random.standard_normal((rows, vocab))).astype(np.float32)
    form = FORMS[name]
    form = dataclasses.replace(form, context=form.context % vocab, excluded=form.excluded % vocab)
    inputs = [dataclasses.replace(form, draw=draw) for draw in np.linspace(0, 1, rows, endpoint=False).tolist()]
    # The last row is broken: that is a status of its own and changes no other row.
    logits_LV[-1, 5] = np.nan
    milliseconds, output = _choose(library, memory, logits_LV, inputs, rounds)
    token_L, logprob_L, status_L = output
    right = np.array([choose_one(logits_V, row, True) for logits_V, row in zip(logits_LV, inputs, strict=True)])
    alike = (status_L == right[:, 2]).all() and (token_L[:-1] == right[:-1, 0]).all()
    difference = np.abs(logprob_L[:-1] - right[:-1, 1]).max() if alike else np.inf
    return Result(f"choose: {name}", float(difference), 1e-9, milliseconds)


def _choose(
    library: ctypes.CDLL, memory: Memory, logits_LV: Any, inputs: Sequence[SamplerInput], rounds: int
) -> tuple[float, sampling.SamplerOutput]:
    """Milliseconds of the kernel and what it chose."""
    rows, vocab = logits_LV.shape
    structs, tokens = cuda.lay_out(inputs)
    kept, address = memory.put(tokens)
    cuda.move(structs, address)
    on_device, structs_at = memory.put(np.frombuffer(structs, np.uint8).copy())
    scratch, scratch_at = memory.put(np.zeros(library.llmctl_ops_cuda_choose_bytes(rows, vocab) // 8, np.float64))
    logits, logits_at = memory.put(logits_LV)

    def call() -> None:
        _done(library.llmctl_ops_cuda_choose(logits_at, structs_at, rows, vocab, 1, scratch_at, None))

    milliseconds = _median(call, memory, rounds)
    output = sampling.read_output(memory.get(on_device).tobytes(), rows)
    del kept, scratch, logits
    return milliseconds, output


def _quantize_kv(library: ctypes.CDLL, memory: Memory, shape: Sequence[int], dtype: str, rounds: int) -> Result:
    """Keys in 8 bits: scales equal to a rounding, codes to one where a value lies between two, other slots untouched."""
    tokens, heads, head_dim = shape
    random = np.random.default_rng(1)
    wide_SKH = random.standard_normal((tokens, heads, head_dim)).astype(np.float32)
    wide_SKH[1, 0] = 0.0
    x_SKH, wide_SKH = _as(wide_SKH, dtype)
    slot_S = random.permutation(2 * tokens)[:tokens].astype(np.int64)
    x, x_at = memory.put(x_SKH)
    slots, slots_at = memory.put(slot_S)
    codes, codes_at = memory.put(np.full((2 * tokens, heads, head_dim), 99, np.int8))
    scales, scales_at = memory.put(np.full((2 * tokens, heads), -1.0, np.float32))
    kind = cuda.DTYPES.index(dtype)

    def call() -> None:
        _done(library.llmctl_ops_cuda_quantize_kv(x_at, kind, slots_at, *shape, codes_at, scales_at, None))

    milliseconds = _median(call, memory, rounds)
    copied = _median(lambda: memory.copy(x), memory, rounds)
    right_SK = np.abs(wide_SKH).max(-1) / np.float32(127)
    exact_SKH = wide_SKH / np.maximum(right_SK, 1e-30)[..., None]
    codes_SKH, scales_SK = memory.get(codes), memory.get(scales)
    others = np.setdiff1d(np.arange(2 * tokens), slot_S)
    untouched = (codes_SKH[others] == 99).all() and (scales_SK[others] == -1).all()
    difference = max(
        np.abs(scales_SK[slot_S] / np.maximum(right_SK, 1e-30) - (right_SK > 0)).max(),
        np.abs(codes_SKH[slot_S] - exact_SKH).max() - 0.5,
    )
    del slots
    return Result(f"quantize_kv: {dtype}", float(difference) if untouched else float("inf"), 1e-4, milliseconds, copied)


def _as(wide: Any, dtype: str) -> tuple[Any, Any]:
    """Values in a type, as the kernel reads them, and as float32; bfloat16 is its bits, cut and not rounded."""
    if dtype == "bfloat16":
        bits = (wide.view(np.uint32) >> 16).astype(np.uint16)
        return bits.view(np.int16), (bits.astype(np.uint32) << 16).view(np.float32)
    narrow = wide.astype(dtype)
    return narrow, narrow.astype(np.float32)


def _median(call: Callable[[], Any], memory: Memory, rounds: int) -> float:
    """Milliseconds of a call until the device is done, after one that is not timed."""
    times = []
    for _ in range(rounds + 1):
        memory.wait()
        started = time.perf_counter()
        call()
        memory.wait()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[1:] or times)


def _done(status: int) -> None:
    if status:
        raise RuntimeError(f"a kernel could not be launched: CUDA error {status}")


def gpu() -> tuple[str, str, int]:
    """The GPU's name, the driver's version and ten times its compute capability.

    Raises:
        RuntimeError: There is no GPU, or no nvidia-smi that names it.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        raise RuntimeError("there is no nvidia-smi: this machine has no GPU of NVIDIA, or not its driver")
    asked = [program, "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    made = subprocess.run(asked, capture_output=True, text=True)
    lines = [line for line in made.stdout.splitlines() if line.count(",") == 2]
    if made.returncode or not lines:
        raise RuntimeError(f"nvidia-smi names no GPU: {(made.stdout + made.stderr).strip()}")
    name, driver, capability = (part.strip() for part in lines[0].split(","))
    return name, driver, round(10 * float(capability))


def memory_of_this_machine() -> TorchMemory | CupyMemory:
    """Torch's memory, else cupy's.

    Raises:
        RuntimeError: Neither is installed with a GPU.
    """
    reasons = []
    for kind in (TorchMemory, CupyMemory):
        try:
            return kind()
        except ImportError as error:
            reasons.append(str(error))
    raise RuntimeError(f"torch or cupy is needed to hold arrays on the GPU: {'; '.join(reasons)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds, compares and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="also write the results as JSON")
    parser.add_argument("--rounds", type=int, default=20, help="how often a call is timed (default: 20)")
    given = parser.parse_args(arguments)
    try:
        name, driver, capability = gpu()
        memory = memory_of_this_machine()
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            file = build(ROOT / "ops" / "csrc" / "cuda", Path(folder, cuda.FILE.name), [capability])
            print(f"{name}, driver {driver}, sm_{capability}, {memory.name}")
            print(f"built in {time.perf_counter() - started:.0f} s", flush=True)
            library = cuda.open_library(file)
            if library is None:
                raise RuntimeError("the library that was built cannot be loaded")
            results = check(library, memory, (ROWS, VOCAB, TOKENS, HEADS, HEAD_DIM), given.rounds)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for one in results:
        beside = f"   a copy {one.copy_milliseconds:.3f} ms" if one.copy_milliseconds is not None else ""
        verdict = "equal" if one.equal else "DIFFERS"
        print(f"{verdict:8}{one.name:34}{one.difference:10.1e}   {one.milliseconds:.3f} ms{beside}")
    if given.output:
        facts = {"gpu": name, "driver": driver, "capability": capability, "memory": memory.name}
        given.output.write_text(
            json.dumps({**facts, "results": [dataclasses.asdict(one) for one in results]}, indent=1) + "\n"
        )
    return 0 if all(one.equal for one in results) else 1


if __name__ == "__main__":
    sys.exit(main())
