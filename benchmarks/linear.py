"""Products with packed weights beside llama.cpp's kernels, torch's, and what the machine can do, in one run.

The sides are worker processes that take turns (``turns.py``). A turn multiplies rows with a weight of 2048 x 5632 again and
again, in as many copies as do not fit into the caches together; a figure is the median over rounds of a turn's best time.
Ours and llama.cpp's integer kernels round rows to 8 bits; llama.cpp's 4-bit weights are repacked for the processor, as it does
when it loads a model. The last column is the part of the limit: of the bandwidth at which this library reads memory in the
same run, or of the rate of its float32 product with 512 rows, whichever bounds the product more (of integer kinds the
processor has a higher rate than that).

    python benchmarks/linear.py --llama-python PYTHON_WITH_LLAMA_CPP --torch-python PYTHON_WITH_TORCH

With ``--threads 1`` seconds are the processor's, which other load disturbs less.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
from pathlib import Path

from lib.turns import Worker

INPUTS, OUTPUTS, MEMORY = 2048, 5632, 160_000_000
ROWS = (1, 4, 16, 32, 512)
KINDS = {
    "float32": ("float32", 0, "float32"),
    "bfloat16": ("bfloat16", 0, "bfloat16"),
    "int8": ("int8", 0, "Q8_0"),
    "int4, groups of 32": ("int4", 32, "Q4_0"),
    "int4, groups of 64": ("int4", 64, "Q4_0"),
    "int4, zero points": ("int4", 32, "Q4_K"),
}
"""Name -> our kind, its group, and what the peers' weights are; those of Q4_K have zero points."""
LLAMA_TYPES = {"float32": 0, "Q4_0": 2, "Q8_0": 8, "Q4_K": 12, "bfloat16": 30}
REPACKED = ("Q4_0", "Q4_K")
REPEATS, SECONDS = 3, 0.3  # of a turn, at least


def copies(size):
    """How many weights of so many bytes do not fit into the caches."""
    return -(-MEMORY // size)


def ours():
    """For a kind and rows: the work, how often it multiplies, and the bytes of a weight; "memory" is no kind, and read."""
    import numpy as np

    from llmctl.infer.packed.linear import PackedLinear, aligned, pack
    from llmctl_ops import library
    from llmctl_ops.linear import as_struct

    random, pointer = np.random.default_rng(1), ctypes.c_void_p
    weight = random.standard_normal((INPUTS, OUTPUTS), np.float32)
    kernel = library.load().kernel("linear", pointer, pointer, pointer, ctypes.c_int64)
    if kernel is None:
        raise SystemExit(f"there are no kernels: {library.load().why}")

    def memory():
        numbers = np.ones(MEMORY // 4, np.float32)
        total, read = ctypes.c_double(), library.load().kernel("sum_squares", pointer, pointer, ctypes.c_int64)

        def run():
            if read(numbers.ctypes.data, ctypes.addressof(total), numbers.size):
                raise SystemExit("memory could not be read")

        return run, 1, MEMORY

    def work(name, rows):
        if name == "memory":
            return memory()
        kind, group, peer = KINDS[name]
        first = pack(weight, kind, group, asymmetric=peer == "Q4_K")
        size = first.data.size + sum(array.nbytes for array in (first.scales, first.zeros) if array is not None)
        others = [aligned(first.data.size) for _ in range(copies(size) - 1)]
        for other in others:
            other[:] = first.data
        held = [
            first,
            *(PackedLinear(kind, INPUTS, OUTPUTS, group, data, first.scales, first.zeros) for data in others),
        ]
        weights = [as_struct(packed) for packed in held]
        x, y = random.standard_normal((rows, INPUTS), np.float32), np.empty((rows, OUTPUTS), np.float32)

        def run(held=held):
            for packed in weights:
                kernel(ctypes.addressof(packed), x.ctypes.data, y.ctypes.data, rows)

        return run, len(weights), size

    return work


def llama(threads):
    """As ``ours``, with llama.cpp's kernels called as its models call them."""
    import llama_cpp
    import numpy as np

    folder = Path(llama_cpp.__file__).parent / "lib"
    base, cpu = (ctypes.CDLL(str(folder / f"libggml-{name}.so"), ctypes.RTLD_GLOBAL) for name in ("base", "cpu"))

    class Parameters(ctypes.Structure):
        _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))

    pointer, integer, number = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64

    def function(library, name, result, *arguments):
        found = getattr(library, name)
        found.restype, found.argtypes = result, arguments
        return found

    init = function(base, "ggml_init", pointer, Parameters)
    tensor = function(base, "ggml_new_tensor_2d", pointer, pointer, integer, number, number)
    multiply = function(base, "ggml_mul_mat", pointer, pointer, pointer, pointer)
    new_graph = function(base, "ggml_new_graph", pointer, pointer)
    expand = function(base, "ggml_build_forward_expand", None, pointer, pointer)
    place = function(base, "ggml_backend_alloc_ctx_tensors_from_buft", pointer, pointer, pointer)
    fill = function(base, "ggml_backend_tensor_set", None, pointer, pointer, ctypes.c_size_t, ctypes.c_size_t)
    release = function(base, "ggml_backend_buffer_free", None, pointer)
    forget = function(base, "ggml_free", None, pointer)
    quantize = function(
        base, "ggml_quantize_chunk", ctypes.c_size_t, integer, pointer, pointer, number, number, number, pointer
    )
    compute = function(base, "ggml_backend_graph_compute", integer, pointer, pointer)
    plain = function(base, "ggml_backend_cpu_buffer_type", pointer)()
    repacked = function(cpu, "_Z35ggml_backend_cpu_repack_buffer_typev", pointer)()
    # It says of each tensor on stderr that it was repacked.
    silent = ctypes.CFUNCTYPE(None, integer, ctypes.c_char_p, pointer)(lambda level, text, data: None)
    function(base, "ggml_log_set", None, pointer, pointer)(silent, None)
    backend = function(cpu, "ggml_backend_cpu_init", pointer)()
    function(cpu, "ggml_backend_cpu_set_n_threads", None, pointer, integer)(backend, threads)
    random = np.random.default_rng(1)
    weight = random.standard_normal((OUTPUTS, INPUTS), np.float32)
    buffers, contexts = [], []  # of the case before

    def work(name, rows, silent=silent):
        if name == "memory":
            return None
        while buffers:
            release(buffers.pop())
        while contexts:
            forget(contexts.pop())
        kind = KINDS[name][2]
        code = LLAMA_TYPES[kind]
        data = np.empty(weight.nbytes, np.uint8)
        size = quantize(code, weight.ctypes.data, data.ctypes.data, 0, OUTPUTS, INPUTS, None)
        count = copies(size)
        context, weights = Parameters(1 << 22, None, True), []
        held, rest = init(context), init(context)
        contexts.extend((held, rest))
        for _ in range(count):
            weights.append(tensor(held, code, INPUTS, OUTPUTS))
        buffers.append(place(held, repacked if kind in REPACKED else plain))
        for one in weights:
            fill(one, data.ctypes.data, 0, size)
        x = tensor(rest, 0, INPUTS, rows)
        products = [multiply(rest, one, x) for one in weights]
        graph = new_graph(rest)
        for one in products:
            expand(graph, one)
        buffers.append(place(rest, plain))
        values = random.standard_normal((rows, INPUTS), np.float32)
        fill(x, values.ctypes.data, 0, values.nbytes)
        return (lambda: compute(backend, graph)), count, size

    return work


def torch_products(threads):
    """As ``ours``, in torch, where it has the type."""
    import torch

    torch.set_num_threads(threads)

    def work(name, rows):
        kind = KINDS[name][2] if name in KINDS else ""
        if not kind.startswith(("float", "bfloat")):
            return None
        dtype = getattr(torch, kind)
        first = torch.randn(OUTPUTS, INPUTS).to(dtype)
        size = first.numel() * first.element_size()
        weights = [first, *(first.clone() for _ in range(copies(size) - 1))]
        x = torch.randn(rows, INPUTS).to(dtype)

        def run():
            with torch.inference_mode():
                for weight in weights:
                    torch.nn.functional.linear(x, weight)

        return run, len(weights), size

    return work


def serve(side, threads):
    """For each case on stdin does its work some times and prints the seconds of one product as JSON."""
    work = {"ours": ours, "llama.cpp": lambda: llama(threads), "torch": lambda: torch_products(threads)}[side]()
    clock = time.process_time if threads == 1 else time.perf_counter
    print(json.dumps({"name": side}), flush=True)
    for line in sys.stdin:
        name, _, rows = line.strip().partition(":")
        found = work(name, int(rows))
        if found is None:
            print(json.dumps({"seconds": [], "cpu": 0.0}), flush=True)
            continue
        run, count, size = found
        run()
        seconds, cpu = [], time.process_time()
        while len(seconds) < REPEATS or sum(seconds) < SECONDS:
            start = clock()
            run()
            seconds.append(clock() - start)
        answer = {"seconds": [s / count for s in seconds], "size": size, "cpu": time.process_time() - cpu}
        print(json.dumps(answer), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", default="", help="a python with llama_cpp")
    parser.add_argument("--torch-python", default="", help="a python with torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="kinds whose name begins so")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--worker", choices=("ours", "llama.cpp", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(options.worker, options.threads)
        return
    pythons = {"ours": sys.executable, "llama.cpp": options.llama_python, "torch": options.torch_python}
    workers = {side: Worker(python, side, __file__, options.threads) for side, python in pythons.items() if python}

    def turns(case):
        """For each side that does the case: seconds of a product and bytes of a weight."""
        rounds = [{side: worker.turn(case) for side, worker in workers.items()} for _ in range(options.rounds)]
        done = [side for side in workers if rounds[0][side]["seconds"]]
        return {
            side: (statistics.median(min(turn[side]["seconds"]) for turn in rounds), rounds[0][side]["size"])
            for side in done
        }

    seconds, size = turns("memory:1")["ours"]
    bandwidth, rate = size / seconds, 2 * 512 * INPUTS * OUTPUTS / turns("float32:512")["ours"][0]
    print(f"memory is read at {bandwidth / 1e9:.1f} GB/s, float32 computes {rate / 1e9:.0f} GFLOP/s\n")
    columns = ["weight", "rows", "ours, us", *(f"{side}, us" for side in workers if side != "ours")]
    columns += [f"of {side}" for side in workers if side != "ours"] + ["GB/s", "GFLOP/s", "of the limit"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for name in (name for name in KINDS if name.startswith(options.only)):
        for rows in map(int, options.rows.split(",")):
            found = turns(f"{name}:{rows}")
            mine, size = found["ours"]
            others = [found.get(side, (None,))[0] for side in workers if side != "ours"]
            work = 2 * rows * INPUTS * OUTPUTS
            limit = max(size / bandwidth, work / rate)
            cells = [name, str(rows), f"{1e6 * mine:.0f}", *("-" if s is None else f"{1e6 * s:.0f}" for s in others)]
            cells += ["-" if s is None else f"{mine / s:.2f}" for s in others]
            cells += [f"{size / mine / 1e9:.1f}", f"{work / mine / 1e9:.0f}", f"{limit / mine:.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
