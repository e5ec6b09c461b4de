"""PaddleSlim 2.6.0 on Paddle 3.3: GPTQ, AWQSearch, PieceWiseSearch and Shift in place of ours, and what they need to run on a CPU.

All its patches are here; nothing of PaddleSlim or paddle changes outside a call. Left out are: ``Smooth`` (it casts to float16, for which
paddle has no ``pow`` and ``matmul`` on a CPU; the searches that it calls run in float32), ``AutoClip`` (float16 too, and one scale for
each 1024 inputs whatever is asked), ``EMASampler`` (its average restarts at the second sample), and the search for the number of pieces
(it adds scales of one try to those of the next). Shape suffixes: T tokens, I inputs, O outputs, G groups of inputs.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib.util
import io
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.errors import ConfigError, require

Array = NDArray[Any]

PURPOSE, EXTRA, VERSION = "quantize.backend=paddleslim", "slim", "2.6.0"
RESOURCES = "pkg_resources"


def check() -> None:
    """Checks that PaddleSlim of the version whose results were compared can be imported.

    Raises:
        ConfigError: It is another version.
        MissingDependencyError: It, or paddle, is not installed.
    """
    from importlib.metadata import version

    require("paddle", "cpu", PURPOSE)
    with _importing():
        require("paddleslim", EXTRA, PURPOSE)
    if (found := version("paddleslim")) != VERSION:
        raise ConfigError(
            f"{PURPOSE} is checked with PaddleSlim {VERSION}, and {found} is installed; install {VERSION}"
        )


def gptq(weight_IO: Array, gram_II: Array, bits: int, group: int, damping: float) -> tuple[NDArray[np.int16], Array]:
    """Codes and scales [G, O] of a weight by ``GPTQ``: symmetric, max|w| of a group being the greatest code.

    Args:
        weight_IO: The weight.
        gram_II: Sum of x x^T of its inputs.
        bits: Bits of a code.
        group: Inputs that share a scale, in the order of the inputs; 0 = all, and the most active inputs go first.
        damping: Added to the diagonal of the Gram matrix, as a share of its mean.

    Raises:
        ValueError: The Gram matrix cannot be factored in float32.
    """
    import paddle

    with _importing():
        from paddleslim.quant.advanced import gptq as slim
    layer = paddle.nn.Linear(*weight_IO.shape)
    layer.weight.set_value(weight_IO.astype(np.float32))
    scales: list[Array] = []

    def scales_of(*given: Any, **named: Any) -> Any:
        found = compute_scales(*given, **named)
        # Divided in place by the caller.
        scales.append(found)
        return found

    compute_scales = slim.compute_scales
    with _quiet(), _patched(slim, compute_scales=scales_of, paddle=_WithoutEmptyIndices(paddle)):
        rounding = slim.GPTQ(layer, quant_bits=bits)
        rounding.hessian = paddle.to_tensor(gram_II.astype(np.float32))
        try:
            rounding.fasterquant(percdamp=damping, groupsize=group or -1, actorder=not group)
        except RuntimeError as error:
            raise ValueError(f"PaddleSlim's GPTQ stopped; raise quantize.damping above {damping:g}: {error}") from None
    # The first are those of whole columns, which groups replace.
    most = 2 ** (bits - 1) - 1
    scales_GO = np.stack([one.numpy() for one in scales[1 if group else 0 :]]) / most
    rows_IO = scales_GO[np.arange(len(weight_IO)) // (group or len(weight_IO))]
    return np.rint(layer.weight.numpy() / rows_IO).astype(np.int16), scales_GO


def piecewise_scale(x_TI: Array, weight_IO: Array, largest_I: Array, pieces: int) -> NDArray[np.float64]:
    """Scales of the inputs of a stage by ``PieceWiseSearch``, of all its linears together; the caller divides the inputs by them.

    Args:
        x_TI: Inputs.
        weight_IO: The weights of the linears, joined along their outputs.
        largest_I: max|x| of each input.
        pieces: Pieces of the inputs that are searched one after the other.
    """
    import paddle

    with _importing():
        from paddleslim.quant.advanced import piecewise_search as slim
    largest, x, weight = (paddle.to_tensor(values.astype(np.float32)) for values in (largest_I[None], x_TI, weight_IO))
    with _quiet(), _patched(slim, float=_one_number):
        found = slim.PieceWiseSearch(k_piece=pieces, search_piece=False).search("stage", x, largest, weight)
    return np.asarray(found.numpy().reshape(-1), np.float64)


def awq_scale(x_TI: Array, weight_IO: Array, magnitude_I: Array, bits: int, group: int) -> NDArray[np.float64]:
    """Scales of the inputs of a stage by ``AWQSearch``, of all its linears together; the caller divides the inputs by them.

    Args:
        x_TI: Inputs.
        weight_IO: The weights of the linears, joined along their outputs.
        magnitude_I: mean|x| of each input.
        bits: Bits of a code.
        group: Inputs that share a scale, a divisor of their number; 0 = all.
    """
    import paddle

    with _importing():
        from paddleslim.quant.advanced import AWQSearch
    mean, x, weight = (paddle.to_tensor(values.astype(np.float32)) for values in (magnitude_I[None], x_TI, weight_IO))
    search = AWQSearch(
        bits_length=bits, weight_quant_method="groupwise" if group else "abs_max_channel_wise", group_size=group
    )  # fmt: skip
    with _quiet():
        found = search.search("stage", x, mean, weight)
    return np.asarray(found.numpy().reshape(-1), np.float64)


def shift_offset(x_TI: Array) -> NDArray[np.float64]:
    """Offsets of the inputs of a stage by ``Shift`` without a sampler, from one batch; the caller subtracts them.

    Args:
        x_TI: Inputs.
    """
    import paddle

    with _importing():
        from paddleslim.quant.advanced import Shift

    class Norm(paddle.nn.Layer):
        """Leaves its inputs as they are; Shift finds it by its name."""

        def __init__(self, inputs: int) -> None:
            super().__init__("norm")
            self.bias = self.create_parameter([inputs], is_bias=True)

        def forward(self, x: Any) -> Any:
            return x

    norm, linear = Norm(x_TI.shape[1]), paddle.nn.Linear(x_TI.shape[1], 1)
    model = paddle.nn.Sequential(norm, linear)
    x = paddle.to_tensor(x_TI[None].astype(np.float32))
    with _quiet():
        shift = Shift(model, {"fused_qkv": True, "norm_flag": "norm", "linear_flag": "linear"})
        # The first batch only shows the order of the layers.
        model(x)
        model(x)
        shift.update_weight()
    return -np.asarray(norm.bias.numpy(), np.float64)


class _WithoutEmptyIndices:
    """paddle, whose ``where`` gives an empty slice where nothing is found: indexing with no indices fails since Paddle 3."""

    def __init__(self, paddle: Any) -> None:
        self._paddle = paddle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._paddle, name)

    def where(self, condition: Any, *choices: Any) -> Any:
        """As ``paddle.where``."""
        if choices or bool(condition.any()):
            return self._paddle.where(condition, *choices)
        return slice(0, 0)


def _one_number(value: Any) -> float:
    """``float``, of arrays of one element too, which numpy 2.4 refuses."""
    return builtins.float(value.item() if hasattr(value, "item") else value)


@contextlib.contextmanager
def _patched(module: ModuleType, **names: Any) -> Iterator[None]:
    """Other names in a module, within the block."""
    absent = object()
    before = {name: module.__dict__.get(name, absent) for name in names}
    module.__dict__.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is absent:
                del module.__dict__[name]
            else:
                module.__dict__[name] = value


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """PaddleSlim can be imported, beside setuptools from 82 too: it needs ``pkg_resources`` of older ones for ONNX only."""
    with _quiet():
        if importlib.util.find_spec(RESOURCES) is not None:
            yield
            return
        sys.modules[RESOURCES] = ModuleType(RESOURCES)
        try:
            yield
        finally:
            del sys.modules[RESOURCES]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing that PaddleSlim prints is shown."""
    import warnings

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
