"""The AdamW update of named parameters, by paddle's kernel or by a fused operator, with one form of state for both.

The state has four arrays for each parameter that was updated: two moments, and the powers of the two betas for the next
step, in double precision. Paddle's kernel keeps the powers in the type of the parameters, where 1 - 0.999 has an error of
1e-5 in float32: so have its first updates. Those of the fused operator have not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import paddle

from llmctl.nn import kernels
from llmctl.train.optim.cpu_offload import Offloaded, in_main_memory

SLOTS = ("moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc")

Parameters = Mapping[str, paddle.Tensor]
LrScales = Mapping[str, float]


@dataclass(frozen=True)
class AdamWSettings:
    """Settings of AdamW, as ``adamw.AdamW`` takes them."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float


class Update(Protocol):
    """Updates parameters from their gradients."""

    def step(self, lr: float) -> None:
        """Updates every parameter that has a gradient."""

    def state(self) -> dict[str, np.ndarray]:
        """The state as ``<slot>/<parameter>``."""

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores a state."""


def make_update(
    parameters: Parameters,
    decayed: Collection[str],
    lr_scales: LrScales,
    settings: AdamWSettings,
    offload: bool = False,
) -> Update:
    """The fused update where it supports all parameters, else paddle's; with ``offload`` the one in main memory.

    Args:
        parameters: Name -> parameter.
        decayed: Names of those with weight decay.
        lr_scales: Name -> factor of the learning rate.
        settings: Betas, eps and weight decay.
        offload: Whether moments are in main memory, and updates are made there.
    """
    if offload:
        return OffloadedAdamW(parameters, decayed, lr_scales, settings)
    fused = kernels.compiled("adamw", *parameters.values())
    if fused is None:
        return PaddleAdamW(parameters, decayed, lr_scales, settings)
    return FusedAdamW(parameters, decayed, lr_scales, settings, fused)


class PaddleAdamW:
    """The update by ``paddle.optimizer.AdamW``; arguments as for ``make_update``."""

    def __init__(
        self, parameters: Parameters, decayed: Collection[str], lr_scales: LrScales, settings: AdamWSettings
    ) -> None:
        self._parameters = parameters
        for name, parameter in parameters.items():
            parameter.optimize_attr["learning_rate"] = lr_scales[name]
        inner = {parameters[name].name for name in decayed}
        self._inner = paddle.optimizer.AdamW(
            learning_rate=0.0,
            beta1=settings.beta1,
            beta2=settings.beta2,
            epsilon=settings.eps,
            parameters=list(parameters.values()),
            weight_decay=settings.weight_decay,
            apply_decay_param_fun=lambda name: name in inner,
        )

    def step(self, lr: float) -> None:
        """As ``Update``."""
        self._inner.set_lr(lr)
        self._inner.step()

    def state(self) -> dict[str, np.ndarray]:
        """As ``Update``."""
        inner = self._inner.state_dict()
        state = {ours: inner[theirs].numpy() for ours, theirs in self._names().items() if theirs in inner}
        return {name: value.astype(np.float64) if _is_power(name) else value for name, value in state.items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """As ``Update``; must come before the first step."""
        held = {name: f"moment1/{name.partition('/')[2]}" if _is_power(name) else name for name in state}
        typed = {name: value.astype(state[held[name]].dtype) for name, value in state.items()}
        names = self._names()
        self._inner.set_state_dict({names[name]: paddle.to_tensor(value) for name, value in typed.items()})
        # Else paddle holds each state until its parameter is updated: what is saved before lacks it, and a parameter that has none
        # yet is an error.
        held_here = {name.partition("/")[2] for name in state}
        block = paddle.static.default_main_program().global_block()
        self._inner._create_accumulators(block, [p for name, p in self._parameters.items() if name in held_here])

    def _names(self) -> dict[str, str]:
        return {f"{slot}/{name}": f"{p.name}_{slot}_0" for name, p in self._parameters.items() for slot in SLOTS}


def _is_power(name: str) -> bool:
    return name.partition("/")[0] in SLOTS[2:]


class FusedAdamW:
    """The update by a fused operator, in one pass over memory; arguments as for ``make_update``.

    Args:
        fused: ``llmctl_ops.adamw``.
    """

    def __init__(
        self,
        parameters: Parameters,
        decayed: Collection[str],
        lr_scales: LrScales,
        settings: AdamWSettings,
        fused: Callable[..., None],
    ) -> None:
        self._parameters, self._decayed, self._lr_scales = parameters, decayed, lr_scales
        self._settings, self._fused = settings, fused
        self._moments: dict[str, tuple[paddle.Tensor, paddle.Tensor]] = {}
        self._powers: dict[str, np.ndarray] = {}

    def step(self, lr: float) -> None:
        """As ``Update``."""
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                self._update(name, parameter, parameter.grad, lr)

    def _update(self, name: str, weight: paddle.Tensor, grad: paddle.Tensor, lr: float) -> None:
        """Updates a weight in place."""
        betas = np.array([self._settings.beta1, self._settings.beta2])
        if name not in self._moments:
            self._moments[name] = paddle.zeros_like(weight), paddle.zeros_like(weight)
            self._powers[name] = betas
        self._fused(
            weight,
            grad,
            *self._moments[name],
            lr=lr * self._lr_scales[name],
            powers=tuple(float(power) for power in self._powers[name]),
            betas=(self._settings.beta1, self._settings.beta2),
            eps=self._settings.eps,
            weight_decay=self._settings.weight_decay if name in self._decayed else 0.0,
        )
        self._powers[name] = self._powers[name] * betas

    def state(self) -> dict[str, np.ndarray]:
        """As ``Update``."""
        state = {}
        for name, moments in self._moments.items():
            arrays = *(moment.numpy() for moment in moments), *self._powers[name].reshape(2, 1)
            state.update({f"{slot}/{name}": array for slot, array in zip(SLOTS, arrays, strict=True)})
        return state

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """As ``Update``."""
        for name in self._parameters:
            arrays = [state.get(f"{slot}/{name}") for slot in SLOTS]
            if all(array is not None for array in arrays):
                self._moments[name] = self._tensor(arrays[0]), self._tensor(arrays[1])
                self._powers[name] = np.array([arrays[2].reshape(-1)[0], arrays[3].reshape(-1)[0]], np.float64)

    def _tensor(self, array: np.ndarray) -> paddle.Tensor:
        """A moment that begins with these values."""
        return paddle.to_tensor(array)


class OffloadedAdamW(FusedAdamW):
    """The update in main memory, where the moments are: the gradient is copied there, and the new weight back.

    A weight that is no ``Offloaded`` is copied there too. Arguments are those of ``make_update``.
    """

    def __init__(
        self, parameters: Parameters, decayed: Collection[str], lr_scales: LrScales, settings: AdamWSettings
    ) -> None:
        super().__init__(parameters, decayed, lr_scales, settings, _in_place)

    @paddle.no_grad()
    def step(self, lr: float) -> None:
        """As ``Update``."""
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            grad = in_main_memory(parameter.grad)
            if isinstance(parameter, Offloaded):
                self._update(name, parameter.value, grad, lr)
            else:
                weight = in_main_memory(parameter)
                self._update(name, weight, grad, lr)
                parameter.set_value(weight)

    def _tensor(self, array: np.ndarray) -> paddle.Tensor:
        return paddle.to_tensor(array, place=paddle.CPUPlace())


def _in_place(
    weight: paddle.Tensor,
    grad: paddle.Tensor,
    moment1: paddle.Tensor,
    moment2: paddle.Tensor,
    *,
    lr: float,
    powers: tuple[float, float],
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """The update of one weight, by the fused operator or by paddle's operations."""
    fused = kernels.compiled("adamw", weight, grad, moment1, moment2)
    if fused is not None:
        fused(weight, grad, moment1, moment2, lr, powers, betas, eps, weight_decay)
        return
    moment1.scale_(betas[0]).add_(grad * (1 - betas[0]))
    moment2.scale_(betas[1]).add_(grad * grad * (1 - betas[1]))
    length = (moment2 / (1 - powers[1])).sqrt() + eps
    weight.scale_(1 - lr * weight_decay).subtract_(moment1 / length * (lr / (1 - powers[0])))
