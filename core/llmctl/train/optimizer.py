"""AdamW over named parameters: scaling and clipping of gradients, and a state that can be stored by name.

The update itself is in ``update``. Decoupled decay as in https://arxiv.org/abs/1711.05101.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import paddle

from llmctl.nn import kernels
from llmctl.train.update import SLOTS, Settings, update_of


class AdamW:
    """Moves those of the parameters that require a gradient.

    Args:
        parameters: Name -> parameter, e.g. from ``model.named_parameters()``.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Each update subtracts ``lr * weight_decay * weight``.
        decays: Which parameters are decayed, by name.
        max_norm: Gradients are scaled down to this global L2 norm; 0 = never.
        rates: What the learning rate is multiplied by, by name of the parameter.
    """

    def __init__(
        self,
        parameters: Mapping[str, paddle.Tensor],
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decays: Callable[[str], bool] = lambda name: True,
        max_norm: float = 0.0,
        rates: Callable[[str], float] = lambda name: 1.0,
    ) -> None:
        self.parameters = {name: p for name, p in parameters.items() if not p.stop_gradient}
        self.max_norm = max_norm
        decayed = {name for name in self.parameters if decays(name)}
        factors = {name: rates(name) for name in self.parameters}
        self._update = update_of(self.parameters, decayed, factors, Settings(beta1, beta2, eps, weight_decay))

    def normalize(self, items: float) -> float:
        """Divides the gradients by a number of items and clips them; returns their norm before clipping.

        A norm that is not finite is returned and the gradients are left as they are.
        """
        grads = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = global_norm(grads) / items
        if not math.isfinite(norm):
            return norm
        factor = 1 / items
        if self.max_norm and norm > self.max_norm:
            factor *= self.max_norm / norm
        with paddle.no_grad():
            for grad in grads:
                grad.scale_(factor)
        return norm

    def step(self, lr: float) -> None:
        """One update with the present gradients, which it then drops."""
        self._update.step(lr)
        self.clear()

    def clear(self) -> None:
        """Drops the gradients."""
        for parameter in self.parameters.values():
            parameter.clear_gradient(False)

    def state(self) -> dict[str, np.ndarray]:
        """Moments and step counts as ``moment1/<parameter>``; parameters that were never moved are absent."""
        return self._update.state()

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes over a state; must come before the first step.

        Raises:
            ValueError: The state has names that are no parameters here.
        """
        foreign = sorted(state.keys() - {f"{slot}/{name}" for name in self.parameters for slot in SLOTS})
        if foreign:
            raise ValueError(f"the optimizer state has {foreign[0]!r}, which is not trained here")
        self._update.load(state)


@paddle.no_grad()
def global_norm(tensors: list[paddle.Tensor]) -> float:
    """Root of the sum of all squares; 0.0 for no tensors."""
    if not tensors:
        return 0.0
    fused = kernels.compiled("sum_squares", *tensors)
    if fused is not None:
        return math.sqrt(fused(tensors))
    # A product of a row and a column is the fastest sum of squares here: a third of the time of (t * t).sum().
    squares = [paddle.matmul(t.reshape([1, -1]), t.reshape([-1, 1])).astype("float64") for t in tensors]
    return float(paddle.concat(squares).sum().sqrt())
