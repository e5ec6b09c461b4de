"""Whether compiled steps of the fused engine compute here what the numpy reference does: a small model with an adapter."""

from __future__ import annotations

import numpy as np

from llmctl.card.decoder_spec import DecoderSpec, Rope
from llmctl.infer.executors.native import NativeExecutor
from llmctl.infer.packed.linear import pack
from llmctl.infer.packed.model import Float, Layer, Linear, LoraDelta, Norm, PackedAdapter, PackedModel

GRAPH = DecoderSpec(
    outer={}, layers=({}, {}), hidden=48, embed=48, heads=4, kv_heads=2, head_dim=16, ffn=40, vocab=67, norm="rmsnorm",
    norm_eps=1e-5, activation="swiglu", score_scales=(0.25, 0.3),
    rope=Rope(rotary_dim=16, frequencies=tuple(10.0 ** -(i / 2) for i in range(8))),
)  # fmt: skip


def step_difference() -> float:
    """The largest difference of a logit, relative to the largest or to 1: two prompts in one step, then single tokens."""
    from llmctl.infer.engine.feeder import SequenceFeeder
    from llmctl.infer.executors.reference import ReferenceExecutor

    model = _model()
    first, second = [5, 60, 7, 7, 31], [(11 * i) % GRAPH.vocab for i in range(37)]
    ours, theirs = (
        np.concatenate(
            [
                logits
                for step in ([(0, first), (1, second)], [(0, [8]), (1, [9])], [(1, [3])])
                for logits in feeder.feed(*step)
            ]
        )
        for feeder in (
            SequenceFeeder(executor, GRAPH, [-1, 0])
            for executor in (NativeExecutor(model, 64), ReferenceExecutor(model))
        )
    )
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


def _model() -> PackedModel:
    random = np.random.default_rng(0)

    def noise(*shape: int) -> Float:
        return (random.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32)

    def linear(inputs: int, outputs: int) -> Linear:
        return Linear(pack(noise(inputs, outputs), "float32"))

    hidden, width = GRAPH.hidden, GRAPH.heads * GRAPH.head_dim
    norm, qkv = Norm(np.linspace(0.5, 1.5, hidden, dtype=np.float32)), width + 2 * GRAPH.kv_heads * GRAPH.head_dim
    layers = tuple(
        Layer(
            norm=norm, qkv=linear(hidden, qkv), out=linear(width, hidden), ffn_norm=norm,
            up=(linear(hidden, 2 * GRAPH.ffn),), down=(linear(GRAPH.ffn, hidden),),
        )
        for _ in GRAPH.layers
    )  # fmt: skip
    changes = {
        (0, "qkv", 0): LoraDelta(noise(hidden, 3), noise(3, qkv)),
        (1, "down", 0): LoraDelta(noise(40, 2), noise(2, hidden)),
    }
    return PackedModel(
        graph=GRAPH, embed=noise(GRAPH.vocab, hidden), head=linear(hidden, GRAPH.vocab), layers=layers, final_norm=norm,
        adapters=[PackedAdapter("adapter", changes)],
    )  # fmt: skip
