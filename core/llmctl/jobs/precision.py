"""The dtypes of a run: of parameters, computation and checkpoints. No paddle here.

Only GPUs compute in half types, always with FP32 master weights, which are part of the optimizer state. On a CPU a
half type applies to checkpoints only, and the run prints this.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from llmctl import runtime
from llmctl.config.common import CommonTrainConfig
from llmctl.config.schema import changed_fields
from llmctl.errors import ConfigError

HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Precision:
    """The dtypes of a run.

    Attributes:
        params: Dtype of the model's parameters.
        compute: Dtype of matrix products.
        checkpoints: Dtype of weights in checkpoints.
        note: One line on what differs from what the configuration says; empty = nothing.
    """

    params: str
    compute: str
    checkpoints: str
    note: str = ""

    @property
    def needs_masters(self) -> bool:
        """Whether the optimizer state must hold the weights, since checkpoints hold them rounded."""
        return self.params in HALF or self.checkpoints in HALF

    @property
    def needs_loss_scaling(self) -> bool:
        """Whether gradients may underflow."""
        return self.compute == "float16"

    def autocast(self) -> AbstractContextManager[Any]:
        """A context in which matrix products are computed in ``compute``, where parameters have another dtype."""
        if self.compute == self.params:
            return nullcontext()
        import paddle

        context: AbstractContextManager[Any] = paddle.amp.auto_cast(level="O1", dtype=self.compute)
        return context

    def record(self) -> dict[str, str]:
        """For ``run.json``."""
        dtypes = {"held": self.params, "computed": self.compute, "stored": self.checkpoints}
        return dtypes | ({"note": self.note} if self.note else {})


def check(dtype: str, train: CommonTrainConfig) -> None:
    """Checks that the fields on dtypes go together.

    Args:
        dtype: ``model.dtype``.
        train: The section ``train``.

    Raises:
        ConfigError: One has no effect, or they contradict each other.
    """
    chosen = changed_fields(train)
    if train.amp == "off" and "amp_dtype" in chosen:
        raise ConfigError(f"train.amp_dtype={train.amp_dtype} has no effect with train.amp=off; set train.amp=O1 or O2")
    if train.amp != "off" and dtype != "float32":
        raise ConfigError(
            f"train.amp={train.amp} is for models of model.dtype=float32, not {dtype}; change one of the two"
        )
    half = dtype if train.amp == "off" else train.amp_dtype
    idle = [key for key in ("loss_scale", "loss_scale_every") if key in chosen]
    if half != "float16" and idle:
        raise ConfigError(f"train.{idle[0]} has an effect only where float16 is computed; leave it out")


def of(dtype: str, train: CommonTrainConfig) -> Precision:
    """The dtypes of a run on the device of this machine.

    Args:
        dtype: ``model.dtype``.
        train: The section ``train``.

    Raises:
        ConfigError: The configuration has mixed precision, and there is no GPU.
    """
    amp = train.amp
    if amp == "off" and dtype not in HALF:
        return Precision(dtype, dtype, dtype)
    device = runtime.device()
    if amp == "off" and device == "cpu":
        note = (
            f"model.dtype={dtype}: a CPU has no kernels for half types, so float32 is computed; checkpoints are stored in "
            f"{dtype}, with FP32 master weights in the optimizer state"
        )
        return Precision("float32", "float32", dtype, note)
    if device == "cpu":
        raise ConfigError(
            f"train.amp={amp} needs a GPU: a CPU has no kernels for half types; set train.amp=off, or model.dtype="
            f"{train.amp_dtype}, which stores checkpoints in it and computes in float32"
        )
    if amp == "O1":
        return Precision("float32", train.amp_dtype, "float32", f"matrix products in {train.amp_dtype}")
    half = dtype if amp == "off" else train.amp_dtype
    return Precision(half, half, dtype, f"computing in {half}, with FP32 master weights in the optimizer state")
