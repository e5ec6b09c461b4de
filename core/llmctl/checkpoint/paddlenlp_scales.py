"""Checkpoints that PaddleNLP quantized to 8 bits: codes in place of the weights, their scales in weight_scales.json.

weight_scales.json: ``LINEAR.weight_quanter`` -> the largest magnitude of each output, so that a weight is code / 127 of it.
act_scales.json: ``LINEAR.activation_quanter`` -> the largest magnitude of the inputs; absent or empty = only weights are quantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.checkpoint.formats.dtypes import FLOATS, cast
from llmctl.checkpoint.formats.tensor_info import CodedTensor, TensorInfo
from llmctl.errors import CheckpointError
from llmctl.io.json_object import read_json
from llmctl.quant.formats.codes import Codes, consecutive

METHOD = "paddlenlp"
WEIGHTS, INPUTS = "weight_scales.json", "act_scales.json"
WEIGHT, INPUT = ".weight_quanter", ".activation_quanter"
OF_RANK = "weight_scales_0.json"
"""The scales of the first of several ranks."""

MOST = 127
"""The code of the largest magnitude."""

MOST_4_BITS = 8
CACHE = ("cachek_matmul", "cachev_matmul")
"""Keys and values, whose scales some versions write beside those of linears."""


@dataclass(frozen=True)
class ScaledTensor(CodedTensor):
    """A weight [in, out] whose stored values are codes.

    Attributes:
        name: The linear.
        stored: The codes, whole numbers of any type.
        scales_O: What a code of 1 stands for.
    """

    outputs_first = False
    name: str = ""
    stored: TensorInfo = field(default_factory=lambda: TensorInfo((0, 0), "int8", Path(), 0))
    scales_O: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    def codes(self) -> Codes:
        """The codes and scales.

        Raises:
            CheckpointError: A value is no code of 8 bits, or the file is truncated.
        """
        codes_IO = self._codes()
        if codes_IO.any() and np.abs(codes_IO).max() <= MOST_4_BITS:
            raise CheckpointError(
                f"{self.file}: the codes of {self.name} are {codes_IO.min():g} to {codes_IO.max():g}, of 4 bits; of PaddleNLP's "
                "folders llmctl reads those of 8 bits (a8w8, weight_only_int8); quantize the float model instead: llmctl quantize"
            )
        scales_OG = self.scales_O[:, None]
        group_I = consecutive(self.shape[0], 0)
        return Codes(8, np.ascontiguousarray(codes_IO.T, np.int16), scales_OG, np.zeros_like(scales_OG), group_I)

    def read_into(self, out: NDArray[Any], dtype: str, start: int = 0) -> None:
        """As ``TensorInfo.read_into``; the whole weight is read, for it is checked as a whole."""
        out[...] = cast(self.codes().values().T[start : start + len(out)], "float32", dtype)

    def _codes(self) -> NDArray[np.float32]:
        codes_IO = _values(self.stored)
        if not _whole(codes_IO):
            raise CheckpointError(
                f"{self.file}: {self.name} has a scale in {WEIGHTS}, but its values are not codes of -128 to {MOST}; the folder mixes "
                "files of two models, or its weights were saved before they were quantized"
            )
        return codes_IO


def is_scaled(folder: Path) -> bool:
    """Whether a folder has scales of PaddleNLP.

    Raises:
        CheckpointError: They are those of single ranks.
    """
    if (folder / OF_RANK).is_file() and not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} has the scales of single ranks ({OF_RANK}); quantize the model in one process, which writes {WEIGHTS}"
        )
    return (folder / WEIGHTS).is_file()


def with_values(folder: Path, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Tensors of a folder; those that are codes have the values that they stand for.

    Raises:
        CheckpointError: A scale is missing or wrong, or has no weight.
    """
    scales = read_json(folder / WEIGHTS, required=True)
    found = dict(tensors)
    for key, values in scales.items():
        linear = _linear(folder / WEIGHTS, key, WEIGHT, tensors)
        stored = tensors[f"{linear}.weight"]
        outputs = stored.shape[1] if len(stored.shape) == 2 else 0
        most_O = _numbers(values, 0)
        if most_O is None or most_O.shape != (outputs,):
            shown = "something else" if most_O is None else str(most_O.size)
            raise CheckpointError(
                f"{folder / WEIGHTS}: {key} must be {outputs} numbers of 0 or more, one for each output of {linear}, not {shown}"
            )
        found[f"{linear}.weight"] = ScaledTensor(
            stored.shape, "float32", stored.file, 0, name=linear, stored=stored, scales_O=most_O / np.float32(MOST)
        )
    _check_inputs(folder / INPUTS, found)
    for name, info in tensors.items():
        if found[name] is info and _has_codes(name, info):
            raise CheckpointError(
                f"{folder / WEIGHTS} has no {name.removesuffix('.weight')}{WEIGHT}, and {name} consists of codes; copy the whole file"
            )
    return found


def _check_inputs(file: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Scales of inputs are not used, for the engine finds its own for every row; wrong ones tell of a damaged folder."""
    given = read_json(file)
    for key, value in given.items():
        _linear(file, key, INPUT, tensors, CACHE)
        number = _numbers(value, np.finfo(np.float32).tiny)
        if number is None or number.size != 1:
            raise CheckpointError(f"{file}: {key} must be a number above 0, not {value!r:.40}")
    scaled = [name.removesuffix(".weight") for name, info in tensors.items() if isinstance(info, ScaledTensor)]
    if given and (absent := [name for name in scaled if name + INPUT not in given]):
        raise CheckpointError(
            f"{file} has no {absent[0]}{INPUT}, though {WEIGHTS} has its weight; copy the whole file, or delete it where only weights "
            "are quantized"
        )


def _linear(file: Path, key: str, suffix: str, tensors: Mapping[str, TensorInfo], others: tuple[str, ...] = ()) -> str:
    """The linear that a key is about."""
    linear = key.removesuffix(suffix)
    known = f"{linear}.weight" in tensors or linear.endswith(others)
    if linear == key or not known:
        raise CheckpointError(f"{file}: {key} belongs to no linear of the folder; keys are LINEAR{suffix}")
    return linear


def _numbers(values: Any, least: float) -> NDArray[np.float32] | None:
    """A number or a list of numbers as float32; None = it is none, or one is smaller or not finite."""
    rows = values if isinstance(values, list) else [values]
    if not all(isinstance(row, int | float) and not isinstance(row, bool) for row in rows):
        return None
    found = np.array(rows, np.float64).astype(np.float32)
    return found if np.isfinite(found).all() and (found >= least).all() else None


def _has_codes(name: str, info: TensorInfo) -> bool:
    """Whether a matrix of a layer consists of codes."""
    if not name.endswith(".weight") or len(info.shape) != 2 or not any(part.isdigit() for part in name.split(".")):
        return False
    values = _values(info)
    return _whole(values) and bool(np.abs(values).max(initial=0) > 1)


def _whole(values: NDArray[np.float32]) -> bool:
    return bool((np.abs(values + 0.5) <= MOST + 0.5).all()) and np.array_equal(values, np.rint(values))


def _values(info: TensorInfo) -> NDArray[np.float32]:
    return np.asarray(cast(info.read(), info.dtype, "float32") if info.dtype in FLOATS else info.read(), np.float32)
