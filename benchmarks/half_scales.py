"""What scales of 16 bits instead of 32 save: bytes of a 4-bit weight, and the time of one row times it.

Both weights have the same codes and, rounded to float16, the same scales. They take turns in one process, each in as many copies as
do not fit into the caches; the ratio is the median over rounds.

    python benchmarks/half_scales.py
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import sys
import time
from dataclasses import replace

INPUTS, OUTPUTS, GROUP, MEMORY = 2048, 5632, 32, 160_000_000
MOST_BITS, MOST_TIME = 4.55, 0.95
PASSES = 5


def main() -> int:
    """Prints bits and times; 1 if they are more than they should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    os.environ["LLMCTL_THREADS"] = str(options.threads)

    import numpy as np

    from llmctl.infer.packed.linear import PackedLinear, aligned, pack
    from llmctl_ops import library
    from llmctl_ops.linear import as_struct

    kernel = library.load().kernel("linear", *[ctypes.c_void_p] * 3, ctypes.c_int64)
    if kernel is None:
        raise SystemExit(f"there are no kernels: {library.load().why}")
    random = np.random.default_rng(1)
    half = pack(random.standard_normal((INPUTS, OUTPUTS), np.float32), "int4", GROUP)
    full = replace(half, scales=half.scales.astype(np.float32))
    x, y = random.standard_normal((1, INPUTS), np.float32), np.empty((1, OUTPUTS), np.float32)

    def size(packed: PackedLinear) -> int:
        return packed.data.nbytes + packed.scales.nbytes

    def copied(array: np.ndarray) -> np.ndarray:
        copy = aligned(array.nbytes).view(array.dtype)
        copy[:] = array
        return copy

    def copies(packed: PackedLinear) -> list[PackedLinear]:
        count = -(-MEMORY // size(packed))
        return [replace(packed, data=copied(packed.data), scales=copied(packed.scales)) for _ in range(count)]

    held = {"float16": copies(half), "float32": copies(full)}
    structs = {name: [as_struct(packed) for packed in weights] for name, weights in held.items()}
    clock = time.process_time if options.threads == 1 else time.perf_counter

    def turn(name: str) -> float:
        """Seconds of a product, the least of some passes over all copies."""
        least = float("inf")
        for _ in range(PASSES):
            start = clock()
            for weight in structs[name]:
                kernel(ctypes.addressof(weight), x.ctypes.data, y.ctypes.data, 1)
            least = min(least, clock() - start)
        return least / len(structs[name])

    answers = []
    for name in held:
        turn(name)
        answers.append(y.copy())
    if not np.array_equal(*answers):
        raise SystemExit("the scales do not mean the same")
    rounds = [(turn("float16"), turn("float32")) for _ in range(options.rounds)]
    ratio = statistics.median(a / b for a, b in rounds)
    bits = {name: 8 * size(weights[0]) / (INPUTS * OUTPUTS) for name, weights in held.items()}
    print("| scales | bits a weight | one row, us |\n|---|---|---|")
    for index, name in enumerate(held):
        print(f"| {name} | {bits[name]:.2f} | {1e6 * statistics.median(pair[index] for pair in rounds):.0f} |")
    print(f"\nratio of the times {ratio:.2f}, allowed {MOST_TIME}; bits {bits['float16']:.2f}, allowed {MOST_BITS}")
    return int(ratio > MOST_TIME or bits["float16"] > MOST_BITS)


if __name__ == "__main__":
    sys.exit(main())
