"""Each operator, forward and backward, three ways in one run: compiled, composed of paddle's operations, and in torch.

The three are worker processes that take turns (``turns.py``); a figure is the median over rounds of a turn's best time, in
milliseconds, on inputs of the same shapes. Composed is what core does without the distribution ``paddle-llmctl-ops``.

    python benchmarks/ops.py --peer-python /path/to/python/with/torch
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time

from lib.turns import Worker

ROWS, HIDDEN, FFN, VOCAB, PARAMETERS = 1024, 512, 1376, 32000, 16_000_000
LONG, DOCUMENTS = 4096, 8
REPEATS, SECONDS = 3, 0.3  # of a turn, at least

CASES = (
    "attention, causal, 4 x 256, 8 heads of 64",
    "attention, causal, 1 x 2048, 8 heads of 128",
    f"attention, causal, 1 x {LONG}, 4 heads of 64",
    f"attention, {DOCUMENTS} documents in {LONG}, 4 heads of 64",
    f"rms_norm, {ROWS} x {HIDDEN}",
    f"layer_norm, {ROWS} x {HIDDEN}",
    f"bias, {ROWS} x {4 * HIDDEN}",
    f"gelu (tanh), {ROWS} x {4 * HIDDEN}",
    "rope, 4 x 256, 8 heads of 64",
    f"swiglu, {ROWS} x {FFN}",
    f"cross entropy, {ROWS} x {VOCAB}",
    f"AdamW, {PARAMETERS // 1_000_000} M parameters",
    f"sum of squares, {PARAMETERS // 1_000_000} M numbers",
)
SHAPES = ((4, 256, 8, 64), (1, 2048, 8, 128), (1, LONG, 4, 64), (1, LONG, 4, 64))


def paddle_work():
    """For each case a function that makes what to time; ``LLMCTL_OPS`` decides which way is taken."""
    from llmctl import runtime

    paddle = runtime.import_paddle("the benchmark")
    from llmctl.nn import kernels
    from llmctl.nn.attention import attend_dense
    from llmctl.nn.loss import token_loss
    from llmctl.nn.mask import Mask
    from llmctl.nn.mlp import gelu_tanh, swiglu
    from llmctl.nn.norm import LayerNorm, rms_norm
    from llmctl.nn.rotary import Rotary, apply_rope
    from llmctl.train.optim.adamw import AdamW
    from llmctl.train.optim.master_weights import sum_squares

    def both(function, *shapes):
        inputs = [paddle.randn(shape) for shape in shapes]
        for tensor in inputs:
            tensor.stop_gradient = False
        grad = paddle.randn(function(*inputs).shape)

        def run():
            function(*inputs).backward(grad)
            for tensor in inputs:
                tensor.clear_gradient(False)

        return run

    def attention(index):
        batch, new, heads, width = SHAPES[index]
        place = paddle.arange(new, dtype="int32").unsqueeze(0)
        size = new // DOCUMENTS if index == 3 else new
        mask = Mask(place, (place // size + 1) * size, new)
        shape = (batch, new, heads, width)

        def attend(q, k, v):
            fused = kernels.compiled("attention", q, k, v)
            if fused is not None:
                return fused(q, k, v, mask.first_BS, mask.last_BS)
            return attend_dense(q, k, v, mask.bias("float32"))

        return both(attend, shape, shape, shape)

    def adamw():
        layer = paddle.nn.Linear(HIDDEN, PARAMETERS // HIDDEN, bias_attr=False)
        optimizer = AdamW(dict(layer.named_parameters()), weight_decay=0.01)
        grad = paddle.randn(layer.weight.shape)

        def run():
            layer.weight.grad = grad
            optimizer.step(1e-4)

        return run

    def squares():
        tensors = [paddle.randn([PARAMETERS // 16]) for _ in range(16)]
        return lambda: math.sqrt(sum_squares(tensors))

    def add_bias(x, bias):
        fused = kernels.compiled("add_bias", x, bias)
        return x + bias if fused is None else fused(x, bias)

    angles = Rotary(64, 10000.0)(paddle.arange(256).unsqueeze(0), "float32")
    labels = paddle.randint(0, VOCAB, [ROWS])
    return [
        *(lambda index=index: attention(index) for index in range(4)),
        lambda: both(lambda x, w: rms_norm(x, w, 1e-6), (ROWS, HIDDEN), (HIDDEN,)),
        lambda: both(LayerNorm(HIDDEN), (ROWS, HIDDEN)),
        lambda: both(add_bias, (ROWS, 4 * HIDDEN), (4 * HIDDEN,)),
        lambda: both(gelu_tanh, (ROWS, 4 * HIDDEN)),
        lambda: both(lambda x: apply_rope(x, *angles), (4, 256, 8, 64)),
        lambda: both(swiglu, (ROWS, FFN), (ROWS, FFN)),
        lambda: both(lambda x: token_loss(x, labels), (ROWS, VOCAB)),
        adamw,
        squares,
    ]


def torch_work(threads):
    """The same in torch, written as transformers does."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(threads)

    def both(function, *shapes):
        inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
        grad = torch.randn(function(*inputs).shape)

        def run():
            function(*inputs).backward(grad)
            for tensor in inputs:
                tensor.grad = None

        return run

    def attention(index):
        batch, new, heads, width = SHAPES[index]
        shape = (batch, heads, new, width)
        if index < 3:
            return both(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), shape, shape, shape)
        place = torch.arange(new)
        document = place // (new // DOCUMENTS)
        mask = (place[:, None] >= place) & (document[:, None] == document)
        return both(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), shape, shape, shape)

    def rotate(x):
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat([-high, low], -1) * sin

    def adamw():
        weight = torch.nn.Parameter(torch.randn(HIDDEN, PARAMETERS // HIDDEN))
        optimizer = torch.optim.AdamW([weight], lr=1e-4, weight_decay=0.01, fused=True)
        weight.grad = torch.randn(weight.shape)
        return optimizer.step

    def squares():
        tensors = [torch.randn(PARAMETERS // 16) for _ in range(16)]
        return lambda: float(torch.nn.utils.get_total_norm(tensors))

    angle = torch.rand(1, 1, 256, 64)
    cos, sin = angle.cos(), angle.sin()
    labels = torch.randint(0, VOCAB, (ROWS,))
    return [
        *(lambda index=index: attention(index) for index in range(4)),
        lambda: both(lambda x, w: F.rms_norm(x, (HIDDEN,), w, 1e-6), (ROWS, HIDDEN), (HIDDEN,)),
        lambda: both(torch.nn.LayerNorm(HIDDEN), (ROWS, HIDDEN)),
        lambda: both(torch.add, (ROWS, 4 * HIDDEN), (4 * HIDDEN,)),
        lambda: both(lambda x: F.gelu(x, approximate="tanh"), (ROWS, 4 * HIDDEN)),
        lambda: both(rotate, (4, 8, 256, 64)),
        lambda: both(lambda gate, up: F.silu(gate) * up, (ROWS, FFN), (ROWS, FFN)),
        lambda: both(lambda x: F.cross_entropy(x, labels, reduction="sum"), (ROWS, VOCAB)),
        adamw,
        squares,
    ]


def serve(side, threads):
    """For each number of a case on stdin does its work some times and prints the seconds as JSON."""
    if side == "composed":
        os.environ["LLMCTL_OPS"] = "reference"
    work = torch_work(threads) if side == "torch" else paddle_work()
    print(json.dumps({"name": side}), flush=True)
    for line in sys.stdin:
        run = work[int(line)]()
        run()
        seconds, cpu = [], time.process_time()
        while len(seconds) < REPEATS or sum(seconds) < SECONDS:
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": seconds, "cpu": time.process_time() - cpu}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=os.environ.get("LLMCTL_PEER_PYTHON"), required=False)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--worker", choices=("compiled", "composed", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(options.worker, options.threads)
        return
    if not options.peer_python:
        parser.error("--peer-python (or LLMCTL_PEER_PYTHON) must name a python with torch")
    pythons = {"compiled": sys.executable, "composed": sys.executable, "torch": options.peer_python}
    workers = [Worker(python, side, __file__, options.threads) for side, python in pythons.items()]
    print(
        "| forward and backward | compiled, ms | composed, ms | torch, ms | of composed | of torch |\n"
        + "|---" * 6
        + "|"
    )
    for index, case in enumerate(CASES):
        if case.startswith(options.only):
            rounds = [[1e3 * min(worker.turn(index)["seconds"]) for worker in workers] for _ in range(options.rounds)]
            ours, composed, torch = (statistics.median(side) for side in zip(*rounds, strict=True))
            ratios = [statistics.median(row[0] / row[other] for row in rounds) for other in (1, 2)]
            print(
                f"| {case} | {ours:.2f} | {composed:.2f} | {torch:.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
