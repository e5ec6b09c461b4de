"""AdamW over named parameters: gradient scaling and clipping, and a state that is saved by name.

The update itself is in ``adamw_kernels``. Decoupled weight decay as in https://arxiv.org/abs/1711.05101.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import paddle

from llmctl.nn.arrays import assign, to_numpy
from llmctl.train.optim.adamw_kernels import SLOTS, AdamWSettings, make_update
from llmctl.train.optim.loss_scaler import LossScaler
from llmctl.train.optim.master_weights import MasterWeights

WEIGHT, SCALE = "weight", "loss_scale"
"""Names in the state: of master weights, and of the state of the loss scaler."""


def trained(parameters: Mapping[str, paddle.Tensor]) -> dict[str, paddle.Tensor]:
    """Those that have gradients."""
    return {name: p for name, p in parameters.items() if not p.stop_gradient}


class AdamW:
    """Updates the trainable parameters.

    Args:
        parameters: Name -> parameter, e.g. from ``model.named_parameters()``.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Each step subtracts ``lr * weight_decay * weight``.
        decays: Which parameters have weight decay, by name.
        max_norm: Gradients are clipped to this global L2 norm; 0 = never.
        lr_scales: Factor of the learning rate, by name of the parameter.
        save_masters: Whether the state holds the master weights, since checkpoints hold them rounded.
        scaler: Loss scaling for float16; None = no scaling.
        weights: What is updated, of the trainable ones of these parameters; None = all of them on this rank.

    Attributes:
        parameters: The trainable parameters.
        weights: As given.
        masters: What is updated: FP32 master weights of parameters in half types, other parameters themselves.
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
        lr_scales: Callable[[str], float] = lambda name: 1.0,
        save_masters: bool = False,
        scaler: LossScaler | None = None,
        weights: MasterWeights | None = None,
    ) -> None:
        self.parameters = trained(parameters)
        self.max_norm, self.scaler, self._save_masters = max_norm, scaler, save_masters
        self.weights = MasterWeights(self.parameters) if weights is None else weights
        self.masters: Mapping[str, paddle.Tensor] = self.weights.tensors
        decayed = {name for name in self.parameters if decays(name)}
        scales = {name: lr_scales(name) for name in self.parameters}
        settings = AdamWSettings(beta1, beta2, eps, weight_decay)
        self._update = make_update(self.masters, decayed, scales, settings, self.weights.offload)

    @property
    def loss_scale(self) -> float:
        """What losses are multiplied by before the backward pass; ``clip_grads`` divides by it."""
        return 1.0 if self.scaler is None else self.scaler.scale

    def accumulate_grads(self) -> None:
        """Accumulates gradients of half types in FP32; to be called after each backward pass."""
        self.weights.accumulate_grads()

    def sum_grads(self) -> None:
        """Sums gradients over the rows of all ranks; to be called after the last backward pass of a step."""
        self.accumulate_grads()
        self.weights.sum_grads()

    def clip_grads(self, items: float) -> float:
        """Divides the accumulated gradients by the number of items and clips them; returns their norm before clipping.

        A norm that is not finite is returned and the gradients are left as they are.
        """
        self.accumulate_grads()
        grads = [p.grad for p in self.masters.values() if p.grad is not None]
        items *= self.loss_scale
        norm = self.weights.norm() / items
        if not math.isfinite(norm):
            return norm
        scale = 1 / items
        if self.max_norm and norm > self.max_norm:
            scale *= self.max_norm / norm
        with paddle.no_grad():
            for grad in grads:
                grad.scale_(scale)
        return norm

    def step(self, lr: float) -> None:
        """One optimizer step with the accumulated gradients, which are then cleared."""
        self.accumulate_grads()
        self._update.step(lr)
        self.weights.copy_to_model()
        if self.scaler is not None:
            self.scaler.succeeded()
        self.clear_grads()

    def clear_grads(self) -> None:
        """Clears the gradients."""
        self.weights.clear_grads()

    def state(self) -> dict[str, np.ndarray]:
        """Moments and powers of the betas as ``moment1/<parameter>``, absent for parameters that were never updated.

        Of parameters that ranks share these are this rank's parts. Where checkpoints hold weights rounded, ``weight/<parameter>`` too.
        """
        state = self._update.state()
        if self._save_masters:
            state.update({f"{WEIGHT}/{name}": to_numpy(weight) for name, weight in self.masters.items()})
        if self.scaler is not None:
            state[SCALE] = self.scaler.state()
        return state

    def parameter_of(self, name: str) -> str | None:
        """The parameter that an array of the state is shaped like; None = it is like none."""
        slot, _, parameter = name.partition("/")
        return parameter if slot in (*SLOTS[:2], WEIGHT) else None

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores a state of whole arrays, of which this rank takes its parts; must come before the first step.

        Raises:
            ValueError: The state has names that are no trainable parameters, lacks a part of one, or has other shapes.
        """
        self._check(state)
        here = [name for name in state if name.partition("/")[2] in self.parameters]
        own = {name: self._own(name, state[name]) for name in here}
        self._update.load({name: value for name, value in own.items() if name.partition("/")[0] in SLOTS})
        for name, weight in self.masters.items():
            if f"{WEIGHT}/{name}" in own:
                assign(weight, own[f"{WEIGHT}/{name}"])
        self.weights.copy_to_model()
        if self.scaler is not None and SCALE in state:
            self.scaler.load(state[SCALE])

    def _own(self, name: str, array: np.ndarray) -> np.ndarray:
        parameter = self.parameter_of(name)
        return array if parameter is None else self.weights.local(parameter, array, name)

    def _check(self, state: Mapping[str, np.ndarray]) -> None:
        known = {f"{slot}/{name}" for name in self.parameters for slot in (*SLOTS, WEIGHT)}
        foreign = sorted(state.keys() - known - {SCALE})
        if foreign and not self.weights.placement.elsewhere:
            raise ValueError(f"the optimizer state has {foreign[0]!r}, which is not trained here")
        for name in self.parameters:
            held = [slot for slot in SLOTS if f"{slot}/{name}" in state]
            if held and len(held) < len(SLOTS):
                missing = next(slot for slot in SLOTS if slot not in held)
                raise ValueError(f"the optimizer state has {held[0]}/{name} and lacks {missing}/{name}")
