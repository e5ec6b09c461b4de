"""A moving average of the weights, which is evaluated and kept as the final model (https://arxiv.org/abs/1803.05407)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from llmctl.errors import CheckpointError
from llmctl.train.loop import Hook, Update

FILE = "average.safetensors"


class Average(Hook):
    """average = decay * average + (1 - decay) * weights after each update, of the parameters that move.

    Args:
        parameters: Name -> parameter.
        decay: Part of the average that is kept.
        moved: Name -> what is averaged in the parameter's place, which is that rounded; None = the parameters.
    """

    def __init__(
        self, parameters: Mapping[str, paddle.Tensor], decay: float, moved: Mapping[str, paddle.Tensor] | None = None
    ) -> None:
        self._parameters = {name: p for name, p in parameters.items() if not p.stop_gradient}
        self._decay = decay
        self._moved = {name: (moved or parameters)[name] for name in self._parameters}
        self._average = {name: _wide(weight) for name, weight in self._moved.items()}

    @paddle.no_grad()
    def on_update(self, update: Update) -> None:
        for name, weight in self._moved.items():
            self._average[name].scale_(self._decay).add_(_wide(weight) * (1 - self._decay))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights inside."""
        own = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self.keep()
        try:
            yield
        finally:
            with paddle.no_grad():
                for name, parameter in self._parameters.items():
                    parameter.set_value(own[name])

    @paddle.no_grad()
    def keep(self) -> None:
        """The model has the averaged weights from now on."""
        for name, parameter in self._parameters.items():
            parameter.set_value(self._average[name].astype(parameter.dtype))

    def write(self, folder: Path) -> None:
        """Writes the average beside a checkpoint."""
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(value.numpy()) for name, value in self._average.items()}, folder / FILE)

    def read(self, folder: Path) -> None:
        """Takes over the average of a checkpoint.

        Raises:
            CheckpointError: It has none, one that is damaged, or one of other parameters.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if not (folder / FILE).is_file():
            raise CheckpointError(f"{folder} holds no averaged weights; it cannot be continued with train.ema_decay")
        try:
            stored: dict[str, Any] = load_file(folder / FILE)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder / FILE} cannot be read: {error}; delete the checkpoint to continue from the one before"
            ) from None
        if stored.keys() != self._average.keys():
            odd = sorted(stored.keys() ^ self._average.keys())
            raise CheckpointError(f"the averaged weights in {folder} are of other parameters: {', '.join(odd[:5])}")
        for name, value in stored.items():
            self._average[name] = paddle.to_tensor(value)


def _wide(parameter: paddle.Tensor) -> paddle.Tensor:
    """A copy; of a half type in float32, which small parts of it can be added to."""
    half = parameter.dtype in (paddle.float16, paddle.bfloat16)
    return parameter.detach().astype("float32") if half else parameter.detach().clone()
