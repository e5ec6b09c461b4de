"""An exponential moving average (EMA) of the weights, which is evaluated and kept as the final model.

As in https://arxiv.org/abs/1803.05407, with exponential weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from llmctl.errors import CheckpointError
from llmctl.train.callbacks.base import Callback, StepMetrics

FILE = "average.safetensors"


class EMA(Callback):
    """average = decay * average + (1 - decay) * weights after each step, for the trainable parameters.

    Args:
        parameters: Name -> parameter.
        decay: Weight of the old average.
        masters: Name -> FP32 master weights, averaged instead of the parameters; None = the parameters.
    """

    def __init__(
        self, parameters: Mapping[str, paddle.Tensor], decay: float, masters: Mapping[str, paddle.Tensor] | None = None
    ) -> None:
        self._parameters = {name: p for name, p in parameters.items() if not p.stop_gradient}
        self._decay = decay
        self._weights = {name: (masters or parameters)[name] for name in self._parameters}
        self._average = {name: _fp32_copy(weight) for name, weight in self._weights.items()}

    @paddle.no_grad()
    def on_step_end(self, metrics: StepMetrics) -> None:
        for name, weight in self._weights.items():
            self._average[name].scale_(self._decay).add_(_fp32_copy(weight) * (1 - self._decay))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the model has the averaged weights."""
        own = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            with paddle.no_grad():
                for name, parameter in self._parameters.items():
                    parameter.set_value(own[name])

    @paddle.no_grad()
    def copy_to_model(self) -> None:
        """Replaces the model's weights by the averaged ones."""
        for name, parameter in self._parameters.items():
            parameter.set_value(self._average[name].astype(parameter.dtype))

    def save(self, folder: Path) -> None:
        """Writes the average into a checkpoint."""
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(value.numpy()) for name, value in self._average.items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Reads the average of a checkpoint.

        Raises:
            CheckpointError: It has none, one that is damaged, or one of other parameters.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if not (folder / FILE).is_file():
            raise CheckpointError(f"{folder} holds no averaged weights; it cannot be resumed with train.ema_decay")
        try:
            stored: dict[str, Any] = load_file(folder / FILE)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder / FILE} cannot be read: {error}; delete the checkpoint to resume from the one before"
            ) from None
        if stored.keys() != self._average.keys():
            odd = sorted(stored.keys() ^ self._average.keys())
            raise CheckpointError(f"the averaged weights in {folder} are of other parameters: {', '.join(odd[:5])}")
        for name, value in stored.items():
            self._average[name] = paddle.to_tensor(value)


def _fp32_copy(parameter: paddle.Tensor) -> paddle.Tensor:
    """A copy; in float32 where the parameter is in a half type, which could not hold the small changes of an average."""
    half = parameter.dtype in (paddle.float16, paddle.bfloat16)
    return parameter.detach().astype("float32") if half else parameter.detach().clone()
