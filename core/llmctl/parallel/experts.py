"""Expert parallelism: the experts of a mixture are divided among ranks with different rows, which send each other tokens.

Each rank computes its own experts for the tokens of all. Attention, norms and routers are on every rank as without it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle

from llmctl.nn.moe import SparseMLP, inverse
from llmctl.parallel.axis import Axis
from llmctl.parallel.collectives import Exchange, all_gather
from llmctl.parallel.stage import Elsewhere


def own_experts(experts: int, axis: Axis) -> range:
    """The numbers of a rank's experts."""
    each = experts // axis.size
    return range(axis.rank * each, (axis.rank + 1) * each)


def divide(model: Any, axis: Axis) -> None:
    """Leaves a model the experts of its rank, in place, and makes its mixtures send tokens to the others.

    Args:
        model: The model, before its weights have memory.
        axis: The ranks; their number divides that of experts. All of them run the model equally often.
    """
    for layer in model.sublayers():
        if isinstance(layer, SparseMLP):
            own = own_experts(len(layer.experts), axis)
            for expert in set(range(len(layer.experts))) - set(own):
                layer.experts[expert] = Elsewhere()
            layer.run_experts = _Exchanged(layer, own, axis)


def held_by(model: Any) -> set[str]:
    """Names of the tensors of the experts that a model has."""
    mixtures = [path for path, layer in model.named_sublayers() if isinstance(layer, SparseMLP)]
    inside = tuple(f"{path}.experts." for path in mixtures)
    return {name for name in model.state_dict() if name.startswith(inside)}


class _Exchanged:
    """``SparseMLP.run_experts`` of a mixture whose experts are on several ranks."""

    def __init__(self, mixture: SparseMLP, own: range, axis: Axis) -> None:
        self._run, self._own, self._axis = mixture.run_experts, own, axis

    def __call__(self, rows: paddle.Tensor, counts: np.ndarray) -> paddle.Tensor:
        axis, own = self._axis, slice(self._own.start, self._own.stop)
        counts_RE = all_gather(paddle.to_tensor(counts[None], dtype="int64"), axis).numpy()
        sent = counts.reshape(axis.size, -1).sum(axis=1).tolist()
        received = counts_RE[:, own].sum(axis=1).tolist()
        anchor = paddle.zeros([1], rows.dtype)
        anchor.stop_gradient = False
        came = Exchange.apply(rows, anchor, sent, received, axis)
        if sum(received):
            came = self._computed(came, counts_RE[:, own], len(counts))
        return Exchange.apply(came, anchor, received, sent, axis)

    def _computed(self, came: paddle.Tensor, counts_RO: np.ndarray, experts: int) -> paddle.Tensor:
        """The outputs of this rank's experts, for rows in the order of the ranks that sent them."""
        numbers = np.concatenate([np.repeat(self._own, counts) for counts in counts_RO])
        order = np.argsort(numbers, kind="stable")
        counts = np.zeros(experts, np.int64)
        counts[self._own.start : self._own.stop] = counts_RO.sum(axis=0)
        done = self._run(paddle.gather(came, paddle.to_tensor(order, dtype="int64")), counts)
        return paddle.gather(done, paddle.to_tensor(inverse(order), dtype="int64"))
