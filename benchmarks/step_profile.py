"""Where the time of the training step in ``train_step.py`` goes: each part alone, forward and backward, and the rest.

python benchmarks/step_profile.py
"""

from __future__ import annotations

import statistics
import time

from train_step import BATCH, FFN, HEADS, HIDDEN, LAYERS, TOKENS, VOCAB, our_step


def milliseconds(function, repeats=7):
    """Median time of a call after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def parts(paddle):
    """Rows (name, how often in a step, function of one forward and backward pass)."""
    from llmctl.nn.attention import attend
    from llmctl.nn.loss import token_loss
    from llmctl.nn.mask import Layout
    from llmctl.nn.mlp import swiglu
    from llmctl.nn.norm import rms_norm
    from llmctl.nn.rotary import Rotary, apply_rope

    def both(function, *shapes):
        inputs = [paddle.randn(shape) for shape in shapes]
        for tensor in inputs:
            tensor.stop_gradient = False

        def run():
            function(*inputs).sum().backward()
            for tensor in inputs:
                tensor.clear_gradient(False)

        return run

    rows, width = BATCH * TOKENS, HIDDEN // HEADS
    head = (BATCH, TOKENS, HEADS, width)
    angles = Rotary(width, 10000.0)(paddle.arange(TOKENS).unsqueeze(0), "float32")
    bias = Layout(TOKENS).mask()
    labels = paddle.randint(0, VOCAB, [rows])
    yield "linear hidden x hidden", 4 * LAYERS, both(paddle.matmul, (rows, HIDDEN), (HIDDEN, HIDDEN))
    yield "linear hidden x ffn", 3 * LAYERS, both(paddle.matmul, (rows, HIDDEN), (HIDDEN, FFN))
    yield "linear hidden x vocab", 1, both(paddle.matmul, (rows, HIDDEN), (HIDDEN, VOCAB))
    yield "attention", LAYERS, both(lambda q, k, v: attend(q, k, v, bias), head, head, head)
    yield "rotary", 2 * LAYERS, both(lambda x: apply_rope(x, *angles), head)
    yield "norm", 2 * LAYERS + 1, both(lambda x, w: rms_norm(x, w, 1e-6), (BATCH, TOKENS, HIDDEN), (HIDDEN,))
    yield "gate", LAYERS, both(swiglu, (BATCH, TOKENS, FFN), (BATCH, TOKENS, FFN))
    yield "residual sum", 2 * LAYERS, both(paddle.add, (BATCH, TOKENS, HIDDEN), (BATCH, TOKENS, HIDDEN))
    yield "cross entropy", 1, both(lambda x: token_loss(x, labels), (rows, VOCAB))


def main():
    step, name = our_step(None)
    import paddle

    whole = milliseconds(step)
    print(f"{name}\nwhole step {whole:8.1f} ms")
    flops = 6 * BATCH * TOKENS * (LAYERS * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN) + HIDDEN * VOCAB)
    total = linear = 0.0
    for part, count, run in parts(paddle):
        each = milliseconds(run)
        total += count * each
        linear += count * each if part.startswith("linear") else 0.0
        print(f"{part:<24} {count:>3} x {each:8.2f} ms = {count * each:8.1f} ms  {100 * count * each / whole:5.1f} %")
    print(f"{'not listed':<24} {'':>18} {whole - total:10.1f} ms  (embedding, AdamW, gradients added, dispatch)")
    print(f"the linears run at {flops / linear / 1e6:.0f} GFLOP/s, the whole step at {flops / whole / 1e6:.0f}")


if __name__ == "__main__":
    main()
