"""AdamW over named parameters: scaling and clipping of gradients, and a state that can be stored by name.

The update itself is in ``update``. Decoupled decay as in https://arxiv.org/abs/1711.05101.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import paddle

from llmctl.nn import kernels
from llmctl.nn.arrays import assign, to_numpy
from llmctl.train.optim.adamw_kernels import SLOTS, Settings, update_of
from llmctl.train.optim.loss_scaler import LossScale
from llmctl.train.optim.master_weights import Masters

WEIGHT, SCALE = "weight", "loss_scale"
"""Names in the state: of weights that checkpoints hold rounded, and of the factor of losses."""


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
        keeps_weights: Whether the state holds the weights, since checkpoints hold them rounded.
        scaling: Factor of losses in float16; None = none.

    Attributes:
        parameters: Those that are moved.
        moved: What is moved in their place: float32 copies of parameters in half types, others themselves.
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
        keeps_weights: bool = False,
        scaling: LossScale | None = None,
    ) -> None:
        self.parameters = {name: p for name, p in parameters.items() if not p.stop_gradient}
        self.max_norm, self.scaling, self._keeps_weights = max_norm, scaling, keeps_weights
        self._masters = Masters(self.parameters)
        self.moved: Mapping[str, paddle.Tensor] = self._masters.tensors
        decayed = {name for name in self.parameters if decays(name)}
        factors = {name: rates(name) for name in self.parameters}
        self._update = update_of(self.moved, decayed, factors, Settings(beta1, beta2, eps, weight_decay))

    @property
    def loss_factor(self) -> float:
        """What losses must be multiplied by before gradients are computed; ``normalize`` divides by it."""
        return 1.0 if self.scaling is None else self.scaling.factor

    def gather(self) -> None:
        """Adds up gradients in float32 where parameters are in half types; to be called after each backward pass."""
        self._masters.gather()

    def normalize(self, items: float) -> float:
        """Divides the gradients by a number of items and clips them; returns their norm before clipping.

        A norm that is not finite is returned and the gradients are left as they are.
        """
        self.gather()
        grads = [p.grad for p in self.moved.values() if p.grad is not None]
        items *= self.loss_factor
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
        self.gather()
        self._update.step(lr)
        self._masters.round()
        if self.scaling is not None:
            self.scaling.passed()
        self.clear()

    def clear(self) -> None:
        """Drops the gradients."""
        for parameter in (*self.parameters.values(), *self.moved.values()):
            parameter.clear_gradient(False)

    def state(self) -> dict[str, np.ndarray]:
        """Moments and step counts as ``moment1/<parameter>``, absent for parameters that were never moved.

        Where checkpoints hold weights rounded, ``weight/<parameter>`` too.
        """
        state = self._update.state()
        if self._keeps_weights:
            state.update({f"{WEIGHT}/{name}": to_numpy(weight) for name, weight in self.moved.items()})
        if self.scaling is not None:
            state[SCALE] = self.scaling.state()
        return state

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes over a state; must come before the first step.

        Raises:
            ValueError: The state has names that are no parameters here.
        """
        known = {f"{slot}/{name}" for name in self.parameters for slot in (*SLOTS, WEIGHT)}
        foreign = sorted(state.keys() - known - {SCALE})
        if foreign:
            raise ValueError(f"the optimizer state has {foreign[0]!r}, which is not trained here")
        self._update.load({name: value for name, value in state.items() if name.partition("/")[0] in SLOTS})
        for name, weight in self.moved.items():
            if f"{WEIGHT}/{name}" in state:
                assign(weight, state[f"{WEIGHT}/{name}"])
        self._masters.round()
        if self.scaling is not None and SCALE in state:
            self.scaling.load(state[SCALE])


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
