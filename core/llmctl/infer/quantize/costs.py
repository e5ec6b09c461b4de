"""What quantizing will take: memory from the sizes of a model, time from a matrix product that is measured here."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.infer.quantize.settings import Settings

PASSES, PASSES_WITH_EXPERTS = 3, 5
"""Products with each weight for a token: one in each stream, and for what the streams differ by; inputs of experts are computed again."""

COMPARED = 2
"""Products with each weight for a token where both models are only compared."""

SCORE = 7e-9
"""Seconds of a score of attention, with its share of a softmax."""

ELEMENTWISE = 2.0
"""The time of everything is that of the products times this."""

SIDE, PASSES_MEASURED = 1024, 5
"""Of the matrix product that is measured, and how often: the fastest counts, since others may use the machine."""


@dataclass(frozen=True)
class Costs:
    """An estimate.

    Attributes:
        memory: Bytes at the peak, besides the model's files.
        seconds: Duration.
    """

    memory: int
    seconds: float


def estimate(graph: DecoderSpec, settings: Settings, windows: Sequence[int]) -> Costs:
    """What quantizing a model will take.

    Args:
        graph: The model.
        settings: How it is quantized.
        windows: Lengths of the windows that it is calibrated on and compared on.
    """
    tokens, scores = sum(windows), graph.heads * sum(length**2 for length in windows)
    width, experts = graph.heads * graph.head_dim, graph.experts.count if graph.experts else 1
    gated = 2 if graph.activation == "swiglu" else 1
    linears = [
        (graph.hidden, width + 2 * graph.kv_heads * graph.head_dim, 1), (width, graph.hidden, 1),
        (graph.hidden, graph.ffn * gated, experts), (graph.ffn, graph.hidden, experts),
    ]  # fmt: skip
    block = sum(inputs * outputs * count for inputs, outputs, count in linears)
    head = graph.vocab * graph.embed
    memory = max(4 * block * 5, 4 * head * 2)
    passes, products = COMPARED, 0.0
    if settings.observes:
        passes = PASSES if experts == 1 else PASSES_WITH_EXPERTS
        most = max(inputs for inputs, _, _ in linears)
        memory = max(4 * block * 4 + 3 * 8 * most**2 + 8 * 3 * max(i * o for i, o, _ in linears), 4 * head * 2)
        products = sum(2.0 * tokens * i**2 + (2.0 * i**2 * o + i**3) * count for i, o, count in linears)
    # What `out` reads in both models, and `down` in the float model; then what `down` reads in both.
    read = 2 * width if experts > 1 else graph.ffn + max(2 * width, graph.ffn)
    memory += 4 * tokens * (2 * graph.hidden + read)
    products += 2.0 * passes * tokens * block
    layer = ELEMENTWISE * products / _rate() + 2e-8 * block + passes * SCORE * scores
    return Costs(int(memory), layer * len(graph.layers))


def _rate() -> float:
    """Operations a second of a matrix product in float32."""
    import numpy as np

    one, best = np.ones((SIDE, SIDE), np.float32), math.inf
    for _ in range(PASSES_MEASURED):
        began = time.perf_counter()
        one @ one
        best = min(best, time.perf_counter() - began)
    return 2.0 * SIDE**3 / best
