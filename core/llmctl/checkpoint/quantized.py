"""Checkpoints with quantized weights (GPTQ, AWQ, compressed-tensors, FP8, bitsandbytes, GGUF, PaddleNLP): their tensors under the names
of the float model.

The formats are in ``llmctl.quant.formats``. A linear's tensors become one ``QuantizedTensor`` or ``SmallFloats``, which reads as float32
values or as codes; other tensors stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.checkpoint import bitsandbytes, paddlenlp_scales
from llmctl.checkpoint.folder import WeightFolder, open_folder, weights_name
from llmctl.checkpoint.formats.dtypes import cast, widen
from llmctl.checkpoint.formats.tensor_info import CodedTensor, TensorInfo
from llmctl.checkpoint.gguf import folder as gguf_folder
from llmctl.checkpoint.hf_config import NAME
from llmctl.checkpoint.small_floats import SmallFloats
from llmctl.errors import CheckpointError, ConfigError
from llmctl.io.gguf_files import LINK
from llmctl.io.json_object import read_json
from llmctl.quant.formats import awq, compressed, gptq, small_floats
from llmctl.quant.formats import bitsandbytes as blocks
from llmctl.quant.formats.codes import WORD, Codes
from llmctl.quant.formats.config import DECIDE, KEY, KEYS, MARKERS, plain_settings, read_scheme, refuse_own_bits
from llmctl.quant.formats.scheme import Scheme

OLD = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Where AutoGPTQ and AutoAWQ wrote the settings before config.json had them, and where ModelOpt writes them, too."""

_Arrays = Mapping[str, NDArray[Any]]
_OF_OUTPUTS: dict[str, Callable[[_Arrays, slice, Scheme], _Arrays]] = {
    "gptq": lambda arrays, outputs, scheme: gptq.of_outputs(arrays, outputs, scheme.bits),
    "awq": lambda arrays, outputs, scheme: awq.of_outputs(arrays, outputs, scheme.rows),
    "compressed-tensors": lambda arrays, outputs, scheme: compressed.of_outputs(arrays, outputs, scheme.several),
    "bitsandbytes": lambda arrays, outputs, scheme: {
        name: values if name == blocks.LAYOUT else values[outputs] for name, values in arrays.items()
    },
}


@dataclass(frozen=True)
class QuantizedTensor(CodedTensor):
    """A weight [out, in] that is stored as codes, with the values of the float32 tensor that it stands for.

    Attributes:
        name: The linear.
        scheme: How it is quantized.
        parts: Its stored tensors, by the last part of their names.
    """

    name: str = ""
    scheme: Scheme = field(default_factory=lambda: Scheme("gptq", 4))
    parts: Mapping[str, TensorInfo] = field(default_factory=dict)

    def codes(self, outputs: slice = slice(None)) -> Codes:
        """The codes, scales and zero points.

        Args:
            outputs: Those that are unpacked; it begins and ends at whole words.

        Raises:
            CheckpointError: The tensors contradict each other, or a file is truncated.
        """
        arrays, scheme = {key: _read(info) for key, info in self.parts.items()}, self.scheme
        try:
            if outputs not in (slice(None), slice(0, self.shape[0])):
                arrays = dict(_OF_OUTPUTS[scheme.method](arrays, outputs, scheme))
            if scheme.method == "gptq":
                return gptq.read(arrays, scheme.bits, scheme.group, scheme.v2, scheme.symmetric, self.name)
            if scheme.method == "awq":
                return awq.read(arrays, scheme.group, scheme.rows)
            if scheme.method == "bitsandbytes":
                return blocks.read_eight(arrays)
            return compressed.read(arrays, scheme.several)
        except (ValueError, IndexError) as error:
            raise _misfit(self.file, self.name, scheme, error) from None

    def read_into(self, out: NDArray[Any], dtype: str, start: int = 0) -> None:
        """As ``TensorInfo.read_into``; only words that hold the rows are unpacked."""
        first = start // WORD * WORD
        stop = min(self.shape[0], -(-(start + len(out)) // WORD) * WORD)
        values = self.codes(slice(first, stop)).values()
        out[...] = cast(values[start - first : start - first + len(out)], "float32", dtype)


def scheme_of(folder: Path, config: Mapping[str, Any]) -> Scheme | None:
    """How the weights of a folder are quantized; None = they are not.

    Args:
        folder: The folder.
        config: Content of its config.json.

    Raises:
        ConfigError: The format is not one that is read.
    """
    refuse_own_bits(config, str(folder / NAME))
    key = next((key for key in KEYS if config.get(key)), KEY)
    stated = config.get(key)
    if paddlenlp_scales.is_scaled(folder) and not (isinstance(stated, dict) and "quant_method" in stated):
        return Scheme(paddlenlp_scales.METHOD, 8)
    old = next((folder / name for name in OLD if (folder / name).is_file()), None)
    if stated:
        scheme = read_scheme(stated, str(folder / NAME))
        if old is not None:
            _check_same(stated, folder / NAME, read_json(old), old)
        return scheme
    if weights_name(folder) == LINK and (bits := gguf_folder.bits_of(folder)):
        return Scheme(gguf_folder.CACHE, bits)
    return None if old is None else read_scheme(read_json(old), str(old))


def _check_same(stated: Any, file: Path, other: Mapping[str, Any], old: Path) -> None:
    """Other tools read one of two files with settings, so they must not contradict each other.

    Raises:
        ConfigError: They do.
    """
    one, another = ({"checkpoint_format": "gptq", **plain_settings(settings)} for settings in (stated, other))
    for name in DECIDE:
        if name in one and name in another and one[name] != another[name]:
            raise ConfigError(
                f"{file} has {KEY} with {name}={one[name]!r}, but {old} has {name}={another[name]!r}; tools read one or the other: "
                "find out which is right, and delete or correct the other"
            )


def without_scheme(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], Scheme | None]:
    """The content of a folder's config.json as that of the float model, and how the weights are quantized; raises as ``scheme_of``."""
    return {key: value for key, value in config.items() if key not in KEYS}, scheme_of(folder, config)


def open_weights(folder: Path, card: Family, dims: Dims) -> WeightFolder:
    """The weights of a folder that holds floats or codes, under the names of the float model; raises as ``open_quantized``."""
    scheme = scheme_of(folder, read_json(folder / NAME))
    if scheme is None:
        return open_folder(folder)
    return open_quantized(folder, scheme, {tensor.torch_name for tensor in card.expand(dims)})


def open_quantized(folder: Path, scheme: Scheme, names: Collection[str]) -> WeightFolder:
    """The weights of a folder under the names of the float model.

    Args:
        folder: The folder.
        scheme: How it is quantized.
        names: Tensors of the float model. AutoGPTQ adds a bias of zeros to every linear, which is left out where it is not one.

    Raises:
        CheckpointError: The folder is damaged, or a linear lacks a tensor.
    """
    opened = open_folder(folder)
    if scheme.method == gguf_folder.CACHE:
        return opened
    if scheme.method == "bitsandbytes" and scheme.bits == 4:
        return WeightFolder(opened.path, bitsandbytes.with_values(opened.tensors))
    if scheme.method == paddlenlp_scales.METHOD:
        return WeightFolder(opened.path, paddlenlp_scales.with_values(folder, opened.tensors))
    tensors: dict[str, TensorInfo] = {}
    # Scales of activations and of the KV cache say nothing of weights.
    left = {name: info for name, info in opened.tensors.items() if name.rpartition(".")[2] not in compressed.UNUSED}
    for linear, (own, parts) in _linears(opened.tensors, scheme).items():
        tensors[f"{linear}.weight"] = _tensor(linear, parts, own)
        bias = f"{linear}.bias"
        if bias in left and bias not in names and not _read(left[bias]).any():
            del left[bias]
        for part in parts:
            left.pop(f"{linear}.{part}", None)
    if doubled := sorted(tensors.keys() & left.keys()):
        raise CheckpointError(f"{folder} holds {doubled[0]} as floats and as codes; delete one")
    return WeightFolder(opened.path, {**left, **tensors})


def _linears(tensors: Mapping[str, TensorInfo], scheme: Scheme) -> dict[str, tuple[Scheme, dict[str, TensorInfo]]]:
    """Name of each quantized linear -> how it is quantized, and its tensors."""
    linears: dict[str, tuple[Scheme, dict[str, TensorInfo]]] = {}
    for name, info in tensors.items():
        linear, _, last = name.rpartition(".")
        if linear in linears or last not in MARKERS and not (last == "weight" and info.dtype in _SMALL):
            continue
        own = scheme.of(linear)
        if own is None:
            raise CheckpointError(
                f"{info.file}: {linear} has {last}, so it is quantized, but {KEY} leaves it out; compare both with where they came from"
            )
        required, optional = _names(linear, tensors, own)
        if absent := [part for part in required if f"{linear}.{part}" not in tensors]:
            raise CheckpointError(
                f"{info.file}: {linear} has {last} as {info.dtype}, but no {' and '.join(absent)}, which codes of {own.method} have; "
                f"compare the files with where they came from, and {KEY} with both"
            )
        found = (part for part in (*required, *optional) if f"{linear}.{part}" in tensors)
        linears[linear] = own, {part: tensors[f"{linear}.{part}"] for part in found}
    return linears


_SMALL = ("int8", "uint8", *small_floats.WEIGHTS)
"""Types of weights that are codes."""


def _names(linear: str, tensors: Mapping[str, TensorInfo], scheme: Scheme) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the tensors that a linear must have, and may have."""
    if scheme.method == "gptq":
        return gptq.PARTS, gptq.OPTIONAL
    if scheme.method == "awq":
        return awq.PARTS, ()
    if scheme.method == "bitsandbytes":
        return blocks.EIGHT, (blocks.LAYOUT,)
    weight = "weight" if f"{linear}.weight" in tensors else "weight_packed"
    if scheme.floats or (scheme.blocks and _is_small(tensors.get(f"{linear}.{weight}"))):
        return (weight,), (*small_floats.SCALES, *small_floats.WHOLE)
    required = compressed.PLAIN if weight == "weight" else compressed.PACKED
    return (*required, *(() if scheme.symmetric else compressed.OPTIONAL[:1])), compressed.OPTIONAL


def _is_small(weight: TensorInfo | None) -> bool:
    """Whether a weight beside others of whole numbers has floats."""
    return weight is not None and weight.dtype in (*small_floats.WEIGHTS, "uint8")


def _tensor(linear: str, parts: Mapping[str, TensorInfo], scheme: Scheme) -> TensorInfo:
    """A linear's weight.

    Raises:
        CheckpointError: The headers of its tensors contradict each other, or the scheme.
    """
    file = next(iter(parts.values())).file
    try:
        if scheme.floats or (scheme.blocks and _is_small(next(iter(parts.values())))):
            shape = small_floats.check(parts, scheme.blocks, scheme.bits)
            block = small_floats.block_of(parts, scheme.blocks, shape)
            return SmallFloats(shape, "float32", file, 0, name=linear, block=block, parts=parts)
        if scheme.method == "gptq":
            shape = gptq.check(parts, scheme.bits, scheme.group)
        elif scheme.method == "awq":
            shape = awq.check(parts, scheme.group, scheme.rows)
        elif scheme.method == "bitsandbytes":
            shape = blocks.check_eight(parts)
        else:
            stated = _read(parts["weight_shape"]).reshape(-1) if "weight_shape" in parts else parts["weight"].shape
            shape = compressed.check(parts, tuple(map(int, stated)), scheme.several, scheme.sizes)
    except ValueError as error:
        raise _misfit(file, linear, scheme, error) from None
    return QuantizedTensor(shape, "float32", file, 0, name=linear, scheme=scheme, parts=parts)


def _misfit(file: Path, linear: str, scheme: Scheme, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{file}: {linear} does not fit quantization as {scheme}: {error}; compare it with the model's {KEY}"
    )


def _read(info: TensorInfo) -> NDArray[Any]:
    values = info.read()
    return np.asarray(widen(values) if info.dtype == "bfloat16" else values)
