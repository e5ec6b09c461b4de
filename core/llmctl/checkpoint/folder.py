"""Folders of weights: a single file, or shards with an index, as safetensors, torch .bin or .pdparams.

Opening a folder reads headers only, and checks them against each other and the index; ``load`` reads the tensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.checkpoint.formats import pdparams, safetensors, torch_bin
from llmctl.checkpoint.formats.dtypes import STORAGE
from llmctl.checkpoint.formats.tensor_info import TensorInfo
from llmctl.errors import CheckpointError
from llmctl.io.gguf_files import LINK
from llmctl.io.json_object import parse_json

SAFETENSORS = "model.safetensors"
TORCH = "pytorch_model.bin"
INDEX = ".index.json"
PACKED = "packed.json"
"""Header of a folder that is packed for the fused engine."""
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
"""Files of adapters, which transformers would apply if they are in the folder of a model."""


def _read_gguf(path: Path) -> Mapping[str, TensorInfo]:
    from llmctl.checkpoint.gguf.folder import read_header

    return read_header(path)


_HEADER_READERS: dict[str, Callable[[Path], Mapping[str, TensorInfo]]] = {
    SAFETENSORS: safetensors.read_header,
    TORCH: torch_bin.read_header,
    pdparams.NAME: pdparams.read_header,
    LINK: _read_gguf,
}


@dataclass(frozen=True)
class WeightFolder:
    """An opened folder: name -> tensor, not in memory."""

    path: Path
    tensors: Mapping[str, TensorInfo]

    @property
    def nbytes(self) -> int:
        """Size of all stored tensors in bytes."""
        return sum(info.nbytes for info in self.tensors.values())

    def read(self, name: str) -> NDArray[Any]:
        """Reads a tensor: half types as float32, other data types unchanged.

        Raises:
            CheckpointError: There is no such tensor, or its file is truncated.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.path} has no tensor {name}")
        info = self.tensors[name]
        dtype = "float32" if info.dtype in ("float16", "bfloat16") else info.dtype
        out = np.empty(info.shape, STORAGE[dtype])
        info.read_into(out, dtype)
        return out


def open_folder(path: str | Path) -> WeightFolder:
    """Opens the weights of a folder; safetensors are preferred to .bin, a single file to shards.

    Raises:
        CheckpointError: The folder has no weights or also an adapter, a shard is missing, or files are damaged or contradict
            the index.
    """
    path = Path(path)
    if not path.is_dir():
        reason = "is a file; give the folder that holds it" if path.exists() else "does not exist"
        raise CheckpointError(f"the model folder {path} {reason}")
    check_no_adapter(path)
    name = weights_name(path)
    if not name:
        raise CheckpointError(_no_weights(path))
    read_header = _HEADER_READERS[name]
    if (path / name).is_file():
        return WeightFolder(path, MappingProxyType(read_header(path / name)))
    return WeightFolder(path, MappingProxyType(read_shards(path / (name + INDEX), read_header)))


def weights_name(path: Path) -> str:
    """The name of the weights that are read of a folder, whether one file or shards; empty = there are none of a known name."""
    return next((name for name in _HEADER_READERS if any((path / (name + end)).is_file() for end in ("", INDEX))), "")


def check_no_adapter(path: Path) -> None:
    """Checks that a folder does not hold both a model and an adapter, which is ambiguous.

    Raises:
        CheckpointError: It holds both.
    """
    model = any((path / (name + end)).is_file() for name in _HEADER_READERS for end in ("", INDEX))
    adapters = [name for name in ADAPTERS if (path / name).is_file()]
    if model and adapters:
        raise CheckpointError(
            f"{path} holds a model and an adapter ({', '.join(adapters)}); move the adapter to a folder of its own"
        )


def _no_weights(path: Path) -> str:
    if (path / PACKED).is_file():
        return f"{path} is packed for the fused engine, which holds other tensors than the model's; give the model that it was made from"
    suffixes = (".safetensors", ".bin", ".pdparams", ".gguf")
    others = sorted(file.name for file in path.iterdir() if file.suffix in suffixes)
    expected = f"expected {SAFETENSORS}, {TORCH}, or shards with {SAFETENSORS}{INDEX} or {TORCH}{INDEX}"
    if any(pdparams.SHARD.fullmatch(name) for name in others):
        return f"{path} holds shards of tensor-parallel ranks; merge them with llmctl convert"
    if not others:
        return f"{path} holds no weights: {expected}"
    listed = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    known = SAFETENSORS if others[0].endswith(".safetensors") else TORCH
    remedy = (
        f"; if that is the whole model, rename it to {known}"
        if len(others) == 1 and others[0].endswith((".safetensors", ".bin"))
        else ""
    )
    files = f"{len(others)} weight file{'s' if len(others) > 1 else ''} ({listed})"
    return f"{path} holds {files}, but none with a known name: {expected}{remedy}"


def read_shards(index: Path, read_header: Callable[[Path], Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
    """The tensors of the files that an index names; also those that it does not list, as transformers and vLLM read them.

    Raises:
        CheckpointError: A file is not there, or index and files contradict each other.
    """
    weight_map = _read_index(index)
    absent = sorted({shard for shard in weight_map.values() if not os.path.isfile(index.parent / shard)})
    if absent:
        shown = ", ".join(name[:100] for name in absent[:5])
        raise CheckpointError(f"{index} names files that are missing, {len(absent)} in all: {shown}")
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        for name, info in read_header(index.parent / shard).items():
            if name in tensors:
                raise CheckpointError(f"{info.file} and {tensors[name].file} both hold the tensor {name}")
            tensors[name] = info
    for name, shard in weight_map.items():
        if name not in tensors:
            raise CheckpointError(f"{index} says that {shard} holds {name}, but no file of the folder does")
        if tensors[name].file.name != shard:
            raise CheckpointError(f"{index} says that {shard} holds {name}, but {tensors[name].file.name} does")
    return tensors


def _read_index(index: Path) -> dict[str, str]:
    try:
        content: Any = parse_json(index.read_text(encoding="utf-8"))
        weight_map = content["weight_map"]
        files = set(weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is not a weight index: {type(error).__name__}: {error}") from None
    if not files:
        raise CheckpointError(f"{index} lists no tensors")
    for file in files:
        if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
            raise CheckpointError(f"{index} names the file {file!r}; shards must be in the folder of their index")
    return dict(weight_map)
