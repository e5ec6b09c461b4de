"""What outlier channels cost: four channels of every stage of a trained model are made large, exactly, and the model is quantized.

Scales are folded into the layers in such a way that the float model computes what it did (``llmctl.infer.quantize.folds``), which is
how large models come to have outliers. Inputs in 8 bits have one scale (static, of the largest value in the calibration), one for each
token, or one for every 32 inputs as in the fused engine. The text is written by the model itself.

    python benchmarks/outliers.py --trained FOLDER
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llmctl import plugins
from llmctl.checkpoint.convert import open_source
from llmctl.checkpoint.hf_config import read_config
from llmctl.infer.packed.linear import rounded
from llmctl.infer.packed.pack import RoundToNearest, graph_of, pack, pack_layer, state_of
from llmctl.infer.quantize import block as blocks
from llmctl.infer.quantize import folds
from llmctl.infer.quantize.block import Block, Matrix, block_of
from llmctl.infer.quantize.folds import Fold
from llmctl.infer.quantize.quantizer import quantize_layer
from llmctl.infer.quantize.settings import Settings
from llmctl.infer.quantize.streams import CALIBRATE, CHECK, HOLD, Streams, Tokens, feed_forward

Array = np.ndarray[Any, Any]
WINDOW, CALIBRATION, MEASURED = 256, 40, 24
CHANNELS = 4
CASES = {
    "int8, rounded": Settings("weight-only-int8", 8, 0, q_bits=8, kv_bits=8),
    "ptq-a8w8 without offsets": Settings("ptq-a8w8", 8, 0, q_bits=8, kv_bits=8),
    "ptq-a8w8": Settings("ptq-a8w8", 8, 0, q_bits=8, kv_bits=8, offsets=True),
    "int4, rounded": Settings("weight-only-int4", 4, 64),
    "gptq": Settings("gptq", 4, 64),
}
INJECTED = {"none": (1, 0), "x30": (30, 0), "x100": (100, 0), "x30, offset 20": (30, 20)}
SCHEMES = {"static": "one scale", "token": "one a token", "32": "one for 32 inputs"}
MOST = {
    ("x30", "ptq-a8w8"): 0.005, ("x100", "ptq-a8w8"): 0.005, ("x30, offset 20", "ptq-a8w8"): 0.005, ("x30", "gptq"): 0.07,
}  # fmt: skip
"""Outliers and weights -> excess that is allowed in every scheme."""
SHARE = ("x30, offset 20", "ptq-a8w8", "ptq-a8w8 without offsets", 0.5)
"""With offsets among the outliers, ours has at most this share of the excess without them, in the scheme that notices most: static."""


class Rounding:
    """A linear whose inputs are rounded to 8 bits; in its first pass it only sees how large they are."""

    def __init__(self, linear: Matrix, scheme: str) -> None:
        self._linear, self._scheme, self._largest, self.seeing = linear, scheme, 1e-30, True

    def __call__(self, x_TI: Array, rounds_T: Array | None = None) -> Array:
        if self.seeing:
            self._largest = max(self._largest, float(np.abs(x_TI).max(initial=0)))
            return self._linear(x_TI)
        if self._scheme == "32":
            return self._linear(rounded(x_TI))
        largest = self._largest if self._scheme == "static" else np.maximum(np.abs(x_TI).max(-1, keepdims=True), 1e-30)
        codes = np.clip(np.rint(x_TI / largest * 127), -128, 127)
        return self._linear((codes * (largest / 127)).astype(np.float32))


def perplexity(streams: Streams, outer: Any, layers: list[Block], wrap: Callable[[Matrix], Any]) -> float:
    """exp of the mean loss on the windows to measure on; wrapped linears see those for calibration first."""
    graph = streams.graph
    wrapped = [
        replace(one, qkv=wrap(one.qkv), out=wrap(one.out), up=tuple(map(wrap, one.up)), down=tuple(map(wrap, one.down)))
        for one in layers
    ]
    linears = [linear for one in wrapped for linear in (one.qkv, one.out, *one.up, *one.down)]
    head, total, count = blocks.matrix(outer.head), 0.0, 0
    for role in (CALIBRATE, CHECK):
        for linear in linears:
            if isinstance(linear, Rounding):
                linear.seeing = role == CALIBRATE
        for chunk in streams.chunks:
            if not (streams.role_T[chunk.rows] == role).all():
                continue
            x_TD = streams.float_TD[chunk.rows]
            for index, one in enumerate(wrapped):
                inner = blocks.sublayer_inputs(graph, one.norm, x_TD)
                mixed = blocks.attend(graph, index, one, one.qkv(inner), chunk)
                x_TD = blocks.add(graph, one.norm, x_TD, inner, one.out(mixed))
                inner = blocks.sublayer_inputs(graph, one.ffn_norm, x_TD)
                x_TD = blocks.add(graph, one.ffn_norm, x_TD, inner, fed_forward(graph, one, inner))
            if role == CALIBRATE:
                continue
            logits = head(blocks.normed(graph, outer.final_norm, x_TD)).astype(np.float64)
            logits -= logits.max(1, keepdims=True)
            scores = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            ids = streams.ids_T[chunk.rows]
            for window in chunk.windows:
                place = np.arange(window.start, window.stop - 1)
                total -= scores[place, ids[place + 1]].sum()
                count += len(place)
    return math.exp(total / count)


def fed_forward(graph: Any, one: Block, inner_TD: Array) -> Array:
    """What a feed-forward layer adds to the residual."""
    if one.router is not None:
        return feed_forward(graph, one, inner_TD, np.zeros(len(inner_TD), bool))
    return one.down[0](blocks.activate(graph, one.up[0](inner_TD)))


def injected(graph: Any, index: int, block: Block, factor: float, offset: float) -> Block:
    """The layer with some input channels of every stage so many times as large, and others with an offset."""
    for number, stage in enumerate(folds.STAGES):
        pool, rng = folds.pooled(graph, stage), np.random.default_rng(7 * index + number)
        scale, shift = np.ones(pool.max() + 1, np.float32), np.zeros(pool.max() + 1, np.float32)
        scale[rng.choice(len(scale), CHANNELS, replace=False)] = 1 / factor
        shift[rng.choice(len(scale), CHANNELS, replace=False)] = -offset
        allowed = offset and not folds.no_offset(graph, stage)
        block = folds.apply(graph, block, stage, Fold(scale[pool], shift[pool] if allowed else None))
    return block


def windows(model: Path, count: int) -> list[list[int]]:
    """Texts that the model writes from nothing."""
    from llmctl.infer.options import EngineOptions
    from llmctl.infer.request import Request
    from llmctl.infer.sampling import SamplingParams
    from llmctl.infer.select import open_backend

    # Named, so that the text stays the same when the default changes.
    handle = open_backend(model, "auto", EngineOptions(kv="float16"))
    tokenizer = handle.tokenizer("auto")
    loaded, start = handle.load(tokenizer, [WINDOW] * count), list(tokenizer.special.prefix)
    requests = [
        Request(prompt=start, options=SamplingParams(max_new_tokens=WINDOW - len(start), sample=True, seed=seed))
        for seed in range(count)
    ]
    found = [list[int]()] * count
    for index, made in loaded.backend.run(requests):
        found[index] = [*start, *made.ids]
    loaded.backend.close()
    return found


def main() -> int:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, required=True, help="a model that was trained for long")
    parser.add_argument("--family", default="llama")
    parser.add_argument("--outliers", action="append", choices=list(INJECTED), help="only these; may be repeated")
    parser.add_argument("--weights", action="append", choices=list(CASES), help="only these; may be repeated")
    options = parser.parse_args()
    plugin = plugins.load(options.family)
    dims = plugin.card.dims_from_config(read_config(options.trained), str(options.trained))
    graph = graph_of(plugin, dims)
    weights = RoundToNearest(state_of(open_source(options.trained, plugin, dims).state, graph))
    outer = pack(replace(graph, layers=()), weights)
    held = CALIBRATION // 5
    roles = [CALIBRATE] * (CALIBRATION - held) + [HOLD] * held + [CHECK] * MEASURED
    tokens = Tokens(windows(options.trained, CALIBRATION + MEASURED), roles)
    found: dict[tuple[str, str], dict[str, float]] = {}
    print(f"| outliers | weights | {' | '.join(SCHEMES.values())} |\n|---|---|---|---|---|", flush=True)
    for title in options.outliers or INJECTED:
        factor, offset = INJECTED[title]
        exact = [
            injected(graph, index, block_of(pack_layer(graph, index, weights)), factor, offset)
            for index in range(len(graph.layers))
        ]
        start = Streams(graph, tokens)
        start.embed(outer, outer)
        right = perplexity(start, outer, exact, lambda linear: linear)
        for name in options.weights or CASES:
            settings, streams = CASES[name], Streams(graph, tokens)
            streams.embed(outer, outer)
            layers = [block_of(quantize_layer(streams, index, one, settings).layer) for index, one in enumerate(exact)]
            more = {
                scheme: perplexity(start, outer, layers, lambda linear, scheme=scheme: Rounding(linear, scheme)) / right
                - 1  # type: ignore[misc]
                for scheme in SCHEMES
            }
            found[title, name] = more
            print(
                f"| {title} | {name} | " + " | ".join(f"{100 * one:+.2f} %" for one in more.values()) + " |", flush=True
            )
    return int(missed(found) > 0)


def missed(found: dict[tuple[str, str], dict[str, float]]) -> int:
    """Prints every goal of what was measured; returns how many were missed."""
    wrong = 0
    print()
    for case, most in MOST.items():
        if case in found:
            largest = max(found[case].values())
            wrong += largest > most
            print(f"{', '.join(case)}: {100 * largest:+.2f} % at most, allowed {100 * most:.1f} %")
    title, mine, other, most = SHARE
    if (title, mine) in found and (title, other) in found:
        share = found[title, mine]["static"] / found[title, other]["static"]
        wrong += share > most
        print(f"{title}, {mine}: {share:.2f} of the excess of {other}, allowed {most}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
