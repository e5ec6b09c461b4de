"""Steps of the fused engine on a random LLaMA: prompts, and answers of one and of many sequences, in each kind of weight.

Steps of single tokens are bound by the bytes that they read; the last column is the time of reading them at the memory's
speed, measured between the steps of the same run, as a part of the step's time. Without paddle; ``LLMCTL_THREADS`` or ``OMP_NUM_THREADS`` sets the threads.

    python benchmarks/decode.py --size 58m --kinds float32 int8 int4
    python benchmarks/decode.py --size 1b --kinds int4 mixed qkv8 --context 64 --sequences 1 8
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the threads that measure the memory's speed are our own

import numpy as np  # noqa: E402

SIZES = {
    "58m": {"layers": 8, "hidden": 512, "heads": 8, "kv_heads": 8, "ffn": 1376, "vocab": 32000},
    "1b": {"layers": 22, "hidden": 2048, "heads": 32, "kv_heads": 4, "ffn": 5632, "vocab": 32000},
}

QKV = {"mixed": ("int4", "int8"), "qkv8": ("int8", "int8")}
"""Kind of a model with other linears in int4 -> kinds of queries, and of keys and values, as ``llmctl quantize --qkv``."""


def model_of(layers, hidden, heads, kv_heads, ffn, vocab, kind, group):
    """A packed model; all layers have the same values in memory of their own."""
    from llmctl.card.decoder_spec import DecoderSpec, Rope
    from llmctl.infer.packed import model as packed
    from llmctl.infer.packed.linear import concat_outputs, joined, pack

    random, width = np.random.default_rng(0), hidden // heads
    frequencies = tuple(10000.0 ** (-np.arange(width // 2) * 2 / width))
    graph = DecoderSpec(
        outer={}, layers=({},) * layers, hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=width, ffn=ffn, vocab=vocab,
        embed=hidden, norm="rmsnorm", norm_eps=1e-6, activation="swiglu", rope=Rope(rotary_dim=width, frequencies=frequencies),
    )  # fmt: skip

    def weight(inputs, outputs, kind):
        values = random.standard_normal((inputs, outputs), np.float32) * inputs**-0.5
        return pack(values, kind, group if kind.startswith("int") else 0)

    def linear(inputs, outputs):
        return packed.Linear(weight(inputs, outputs, "int4" if kind in QKV else kind))

    q, kv = QKV.get(kind, (kind, kind))
    qkv = [weight(hidden, hidden, q), weight(hidden, 2 * kv_heads * width, kv)]

    norm = packed.Norm(np.ones(hidden, np.float32))
    first = packed.Layer(
        norm=norm, qkv=packed.Linear(joined(qkv) if q != kv else concat_outputs(qkv)), out=linear(hidden, hidden), ffn_norm=norm,
        up=(linear(hidden, 2 * ffn),), down=(linear(ffn, hidden),),
    )  # fmt: skip
    return packed.PackedModel(
        graph=graph,
        embed=random.standard_normal((vocab, hidden), np.float32),
        head=linear(hidden, vocab),
        layers=(first, *(copy.deepcopy(first) for _ in range(layers - 1))),
        final_norm=norm,
    )


def bytes_of(model):
    """Of the linears' weights, which every step reads."""
    linears = [model.head, *(linear for layer in model.layers for linear in layer.linears)]
    parts = [part for linear in linears for part, _ in linear.parts]
    arrays = [array for part in parts for array in (part.data, part.scales, part.zeros)]
    return sum(array.nbytes for array in arrays if array is not None)


def bandwidth(threads):
    """Bytes per second that all threads together read of memory, the best of some tries."""
    parts = [np.ones(1 << 25, np.float32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        times = []
        for _ in range(8):
            start = time.perf_counter()
            list(pool.map(np.dot, parts, parts))
            times.append(time.perf_counter() - start)
    return sum(part.nbytes for part in parts) / min(times)


def step_of(sequences, past, new, rows_of_blocks):
    """A batch in which so many sequences of ``past`` tokens get ``new`` more each."""
    from llmctl.infer.executors.base import Batch

    row = np.repeat(np.arange(sequences, dtype=np.int32), new)
    place = np.tile(np.arange(past, past + new, dtype=np.int32), sequences)
    wanted = np.arange(sequences, dtype=np.int32) * new + new - 1
    ids = (place * 7 + row) % 1000
    return Batch(
        ids, row, place, place, None, np.zeros_like(place), place + 1, rows_of_blocks[:sequences],
        np.full(sequences, -1, np.int32), wanted,
    )  # fmt: skip


def steps_of(executor, weights, options):
    """Name, batch and bytes read of each step, over a cache that holds the sequences' past."""
    per, most, first = -(-(options.context + 1) // 16), max(options.sequences), min(512, options.context)
    executor.allocate(per * most)
    blocks = np.random.default_rng(1).permutation(per * most).reshape(most, per).astype(np.int32)
    for row in range(most):
        for at in range(0, options.context, 512):
            executor.run(step_of(1, at, min(512, options.context - at), blocks[row : row + 1]))
    yield f"prompt of {first}", step_of(1, 0, first, blocks), 0
    for count in options.sequences:
        read = weights + count * per * executor.block_bytes
        yield f"{count} x 1 after {options.context}", step_of(count, options.context, 1, blocks), read


def seconds(executor, batch, repeats):
    """Best and median time of a step."""
    executor.run(batch)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        executor.run(batch)
        times.append(time.perf_counter() - start)
    return min(times), statistics.median(times)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="58m")
    parser.add_argument("--kinds", nargs="+", default=["float32", "int8", "int4"], help=f"also {' and '.join(QKV)}")
    parser.add_argument("--kv", default="float32")
    parser.add_argument("--group", type=int, default=64, help="inputs that share a scale, of integer kinds")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    from llmctl import runtime

    runtime.configure()
    from llmctl.infer.executors.native import NativeExecutor

    threads = int(dict((name, value) for name, value, *_ in runtime.describe())["threads"])
    rows, speed = [], bandwidth(threads)
    for kind in options.kinds:
        model = model_of(**SIZES[options.size], kind=kind, group=options.group)
        executor = NativeExecutor(model, 512, options.kv)
        for name, batch, read in steps_of(executor, bytes_of(model), options):
            best, median = seconds(executor, batch, options.repeats)
            rows.append((kind, name, best, median, len(batch.ids_T) / best, read))
        speed = max(speed, bandwidth(threads))
    print(f"{options.size}, {threads} threads, memory reads {speed / 1e9:.1f} GB/s, cache {options.kv}")
    print(f"{'weights':10}{'step':>24}{'best ms':>10}{'median':>10}{'tokens/s':>10}{'of bound':>10}")
    for kind, name, best, median, tokens, read in rows:
        bound = f"{read / speed / best:10.2f}" if read else ""
        print(f"{kind:10}{name:>24}{best * 1e3:10.2f}{median * 1e3:10.2f}{tokens:10.0f}{bound}")


if __name__ == "__main__":
    main()
