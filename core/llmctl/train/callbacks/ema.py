"""An exponential moving average (EMA) of the weights, which is evaluated and kept as the final model.

As in https://arxiv.org/abs/1803.05407, with exponential weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import paddle

from llmctl.checkpoint.formats.safetensors import read_header
from llmctl.checkpoint.save import save_tensors
from llmctl.errors import CheckpointError
from llmctl.train.callbacks.base import Callback, StepMetrics
from llmctl.train.optim.master_weights import MasterWeights

FILE = "average.safetensors"


class EMA(Callback):
    """average = decay * average + (1 - decay) * weights after each step, for the trainable parameters.

    Args:
        weights: What the optimizer updates; of slices the slices are averaged.
        decay: Weight of the old average.

    Attributes:
        average: Name -> the average of a weight, or of this rank's part of it.
    """

    def __init__(self, weights: MasterWeights, decay: float) -> None:
        self._weights, self._decay = weights, decay
        self.average = {name: _copy(weight) for name, weight in weights.tensors.items()}

    @paddle.no_grad()
    def on_step_end(self, metrics: StepMetrics) -> None:
        for name, weight in self._weights.tensors.items():
            self.average[name].scale_(self._decay).add_(_copy(weight) * (1 - self._decay))

    def applied(self) -> AbstractContextManager[None]:
        """Context in which the model has the averaged weights."""
        return self._weights.applied(self.average)

    def copy_to_model(self) -> None:
        """Replaces the model's weights by the averaged ones."""
        self._weights.copy_to_model(self.average)

    def load(self, folder: Path) -> None:
        """Reads the average of a checkpoint.

        Raises:
            CheckpointError: It has none, one that is damaged, or one of other parameters.
        """
        if not (folder / FILE).is_file():
            raise CheckpointError(f"{folder} holds no averaged weights; it cannot be resumed with train.ema_decay")
        try:
            stored = read_header(folder / FILE)
        except (OSError, CheckpointError) as error:
            raise CheckpointError(
                f"{folder / FILE} cannot be read: {error}; delete the checkpoint to resume from the one before"
            ) from None
        odd = sorted(self._weights.unlike(stored))
        if odd:
            raise CheckpointError(f"the averaged weights in {folder} are of other parameters: {', '.join(odd[:5])}")
        for name in self.average:
            self.average[name] = paddle.to_tensor(self._weights.local(name, stored[name].read(), f"{FILE}: {name}"))


def save(folder: Path, average: Mapping[str, Any]) -> None:
    """Writes an average into a checkpoint."""
    save_tensors(folder / FILE, average)


def _copy(weight: paddle.Tensor) -> paddle.Tensor:
    return weight.detach().clone()
