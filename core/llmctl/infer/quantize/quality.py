"""How far the quantized model is from the float one, from what both streams hold after the last layer.

Shape suffixes: S tokens of a window, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.infer.packed.model import PackedModel
from llmctl.infer.perplexity.measure import Measures
from llmctl.infer.quantize import block as blocks
from llmctl.infer.quantize.block import Chunk
from llmctl.infer.quantize.streams import CHECK, Streams

Array = NDArray[Any]


def compare(streams: Streams, exact: PackedModel, quantized: PackedModel) -> tuple[Measures, Measures]:
    """Measures of the float and of the quantized model on the windows for checks; without tokens, if there are none.

    Args:
        streams: The streams, after the last layer.
        exact: The float model; its layers are not looked at.
        quantized: The quantized one.
    """
    float_measures, measures = Measures(), Measures()
    heads = [_Head(streams, model) for model in (exact, quantized)]
    for chunk in streams.chunks:
        for window in chunk.windows:
            rows = slice(chunk.rows.start + window.start, chunk.rows.start + window.stop)
            scored = _scored(streams, chunk, window)
            if not len(scored):
                continue
            targets = streams.ids_T[rows][scored + 1]
            right, found = (
                _log_softmax(head(stream[rows][scored]))
                for head, stream in zip(heads, (streams.float_TD, streams.quantized_TD), strict=True)
            )
            _add(float_measures, targets, right, right)
            _add(measures, targets, found, right)
    return float_measures, measures


class _Head:
    """From the residual to logits."""

    def __init__(self, streams: Streams, model: PackedModel) -> None:
        self._graph, self._norm = streams.graph, model.final_norm
        self._linears = [blocks.matrix(one) for one in (model.project_out, model.head) if one is not None]

    def __call__(self, x_SD: Array) -> Array:
        x_SD = blocks.normed(self._graph, self._norm, x_SD)
        for linear in self._linears:
            x_SD = linear(x_SD, np.ones(len(x_SD), bool))
        return x_SD


def _scored(streams: Streams, chunk: Chunk, window: slice) -> NDArray[np.int64]:
    """Tokens of a window whose successor is predicted and counts: those for checks that do not see it."""
    check = streams.role_T[chunk.rows][window] == CHECK
    place = np.arange(window.stop - window.start)
    counted = check & streams.counts_T[chunk.rows][window] & (chunk.end_T[window] == place + 1)
    return np.flatnonzero(counted[:-1])


def _add(measures: Measures, targets: Array, found_SV: Array, right_SV: Array) -> None:
    measures.tokens += len(targets)
    measures.loss_sum -= float(found_SV[np.arange(len(targets)), targets].sum(dtype=np.float64))
    measures.same_top += int((found_SV.argmax(axis=1) == right_SV.argmax(axis=1)).sum())
    for found_V, right_V in zip(found_SV, right_SV, strict=True):
        exact_V = right_V.astype(np.float64)
        measures.divergence_sum += float(np.exp(exact_V) @ (exact_V - found_V))


def _log_softmax(logits_SV: Array) -> Array:
    shifted = logits_SV - logits_SV.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)), np.float32)
