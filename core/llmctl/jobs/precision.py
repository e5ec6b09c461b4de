"""The types of a run: what parameters are held in, what is computed in, what checkpoints are stored in. No paddle here.

A half type is computed in only on GPUs, always with float32 copies of the weights, which move and are part of the
optimiser's state. On a CPU a half type is what is stored, and the run says so.
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
    """The types of a run.

    Attributes:
        held: Of parameters in the model.
        computed: Of products of matrices.
        stored: Of weights in checkpoints.
        note: One line on what differs from the configuration's words; empty = nothing.
    """

    held: str
    computed: str
    stored: str
    note: str = ""

    @property
    def keeps_weights(self) -> bool:
        """Whether the optimiser's state must hold the weights, since checkpoints hold them rounded."""
        return self.held in HALF or self.stored in HALF

    @property
    def scales_losses(self) -> bool:
        """Whether gradients may be too small for the type that they are computed in."""
        return self.computed == "float16"

    def computing(self) -> AbstractContextManager[Any]:
        """A context in which products of matrices have the type, where parameters are held in another."""
        if self.computed == self.held:
            return nullcontext()
        import paddle

        context: AbstractContextManager[Any] = paddle.amp.auto_cast(level="O1", dtype=self.computed)
        return context

    def record(self) -> dict[str, str]:
        """For ``run.json``."""
        said = {"held": self.held, "computed": self.computed, "stored": self.stored}
        return said | ({"note": self.note} if self.note else {})


def check(dtype: str, train: CommonTrainConfig) -> None:
    """Passes when the fields on types go together.

    Args:
        dtype: ``model.dtype``.
        train: The fields on updates.

    Raises:
        ConfigError: They do not.
    """
    chosen = changed_fields(train)
    if train.amp == "off" and "amp_dtype" in chosen:
        raise ConfigError(f"train.amp_dtype={train.amp_dtype} has no effect with train.amp=off; set train.amp=O1 or O2")
    if train.amp != "off" and dtype != "float32":
        raise ConfigError(
            f"train.amp={train.amp} is for models of model.dtype=float32, not {dtype}; set one of the two back"
        )
    half = dtype if train.amp == "off" else train.amp_dtype
    idle = [key for key in ("loss_scale", "loss_scale_every") if key in chosen]
    if half != "float16" and idle:
        raise ConfigError(f"train.{idle[0]} has an effect where float16 is computed in only; leave it out")


def of(dtype: str, train: CommonTrainConfig) -> Precision:
    """The types of a run on this machine's device.

    Args:
        dtype: ``model.dtype``.
        train: The fields on updates.

    Raises:
        ConfigError: Mixed precision is asked for where there is no GPU.
    """
    amp = train.amp
    if amp == "off" and dtype not in HALF:
        return Precision(dtype, dtype, dtype)
    device = runtime.device()
    if amp == "off" and device == "cpu":
        note = (
            f"model.dtype={dtype}: a CPU has no kernels for half types, so float32 is computed; checkpoints are stored in "
            f"{dtype}, with float32 weights in the optimizer's state"
        )
        return Precision("float32", "float32", dtype, note)
    if device == "cpu":
        raise ConfigError(
            f"train.amp={amp} needs a GPU: a CPU has no kernels for half types; set train.amp=off, or model.dtype="
            f"{train.amp_dtype}, which stores checkpoints in it and computes in float32"
        )
    if amp == "O1":
        return Precision("float32", train.amp_dtype, "float32", f"products of matrices in {train.amp_dtype}")
    half = dtype if amp == "off" else train.amp_dtype
    return Precision(half, half, dtype, f"computing in {half}, with float32 weights in the optimizer's state")
