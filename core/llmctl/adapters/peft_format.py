"""LoRA adapters in the format of PEFT: ``adapter_model.safetensors``, and ``adapter_config.json`` (see ``peft_config``).

Tensors are named ``base_model.model.<path in the torch model>.lora_A.weight`` [rank, in], ``.lora_B.weight`` [out, rank]
and ``.lora_magnitude_vector`` [out]. Layers that are fused in the torch model and split in
llmctl are fused when writing (``adapter.fuse``: exact, the ranks add up) and split when reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.adapters import peft_modules, targets
from llmctl.adapters.adapter import Adapter, Array, LoraWeights, fuse, split_fused
from llmctl.adapters.peft_config import CONFIG, make_config, rank_and_scale, read_config, selected_modules
from llmctl.adapters.peft_modules import PREFIX
from llmctl.adapters.peft_weights import WEIGHTS, as_planned, check_tensors, headers, load
from llmctl.card.dims import Dims
from llmctl.checkpoint.formats import safetensors
from llmctl.checkpoint.formats.safetensors import PlannedTensor
from llmctl.checkpoint.formats.tensor_info import TensorInfo
from llmctl.errors import CheckpointError
from llmctl.io.json_object import write_json

A, B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"


def read(folder: Path, plugin: Any, dims: Dims, blocks: Mapping[str, Any]) -> tuple[Adapter, Dims]:
    """Reads the adapter in a folder; returns it and the dims of the model with it.

    Args:
        folder: The folder.
        plugin: Plugin of the base model's family.
        dims: Dims of the base model.
        blocks: What ``write`` returned: fused layer in the torch model -> layer on the card -> its rank in the fused adapter.

    Raises:
        CheckpointError: A setting is not supported, or tensors are missing, unexpected or have another shape.
    """
    config = read_config(folder)
    known = targets.torch_modules(plugin, dims)
    shapes = {path: tensor.shape for path, tensor in targets.linears(plugin.card, dims).items()}
    layers = selected_modules(config, known, plugin, dims, folder)
    tensors = headers(folder)
    saved = peft_modules.read(folder, config, tensors, plugin, dims)
    tensors = {name: info for name, info in tensors.items() if name not in saved.names}
    dora = bool(config.get("use_dora", False))
    _check(folder, tensors, {torch: _sizes(known[torch], shapes) for torch in layers}, config, dora)
    parts: dict[str, LoraWeights] = {}
    for torch in layers:
        rank, scale = rank_and_scale(config, torch)
        packed = _read_layer(tensors, torch, scale, dora)
        paths = known[torch]
        ranks = [int(blocks[torch].get(path, 0)) for path in paths] if torch in blocks else None
        widths = [shapes[path][1] for path in paths]
        if ranks is not None and sum(ranks) != rank:
            raise CheckpointError(
                f"{folder}: {torch} has rank {rank}, but llmctl.json says {ranks}; the files do not belong together"
            )
        parts.update({p: part for p, part in zip(paths, split_fused(packed, widths, ranks), strict=True) if part})
    order = [path for path in shapes if path in parts]
    adapter = Adapter(
        {path: parts[path] for path in order},
        bool(config.get("use_rslora", False)),
        float(config.get("lora_dropout", 0.0)),
        str(config.get("base_model_name_or_path") or ""),
        dtype=tensors[PREFIX + layers[0] + A].dtype,
        tensors=saved.tensors,
        tokens=saved.tokens,
    )
    return adapter, saved.dims


def write(folder: Path, adapter: Adapter, plugin: Any, dims: Dims, dtype: str) -> dict[str, dict[str, int]]:
    """Writes both files into an existing folder; returns ``blocks`` for ``read``.

    Args:
        folder: The folder.
        adapter: The adapter.
        plugin: Plugin of the base model's family.
        dims: Dims of the model with the adapter.
        dtype: Data type of the tensors.

    Raises:
        CheckpointError: The adapter cannot be expressed on the layers of the torch model, or a value does not fit.
    """
    fused, blocks = _fuse_all(adapter, plugin, dims)
    planned: dict[str, PlannedTensor] = {}
    for torch, part in fused.items():
        rows = {A: part.a.T, B: part.b.T, **({} if part.magnitude is None else {MAGNITUDE: part.magnitude})}
        planned.update({name: as_planned(name, values, dtype)
                        for name, values in ((PREFIX + torch + ending, rows[ending]) for ending in rows)})  # fmt: skip
    planned.update(peft_modules.planned(adapter, plugin, dims, dtype))
    safetensors.write_file(folder / WEIGHTS, planned)
    config = make_config(fused, adapter, plugin, dims)
    write_json(folder / CONFIG, config)
    return blocks


def _fuse_all(adapter: Adapter, plugin: Any, dims: Dims) -> tuple[dict[str, LoraWeights], dict[str, dict[str, int]]]:
    """Path in the torch model -> LoRA weights; and ``blocks``, the ranks in fused layers."""
    shapes = {path: tensor.shape for path, tensor in targets.linears(plugin.card, dims).items()}
    fused: dict[str, LoraWeights] = {}
    blocks: dict[str, dict[str, int]] = {}
    for torch, paths in targets.torch_modules(plugin, dims).items():
        parts = {path: adapter.layers[path] for path in paths if path in adapter.layers}
        if parts and len(paths) == 1:
            fused[torch] = parts[paths[0]]
        elif parts:
            try:
                fused[torch] = fuse([parts.get(path) for path in paths], [shapes[path][1] for path in paths])
            except ValueError as error:
                raise CheckpointError(f"an adapter of {torch} cannot be written: {error}") from None
            blocks[torch] = {path: part.rank for path, part in parts.items()}
    return fused, blocks


def _sizes(paths: list[str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    return shapes[paths[0]][0], sum(shapes[path][1] for path in paths)


def _check(
    folder: Path,
    tensors: Mapping[str, TensorInfo],
    sizes: Mapping[str, tuple[int, int]],
    config: Mapping[str, Any],
    dora: bool,
) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for torch in sizes:
        (inputs, outputs), (rank, _) = sizes[torch], rank_and_scale(config, torch)
        expected[PREFIX + torch + A], expected[PREFIX + torch + B] = (rank, inputs), (outputs, rank)
        if dora:
            expected[PREFIX + torch + MAGNITUDE] = (outputs,)
    check_tensors(folder, tensors, expected)


def _read_layer(tensors: Mapping[str, TensorInfo], torch: str, scale: float, dora: bool) -> LoraWeights:
    def get(ending: str) -> Array:
        return load(tensors[PREFIX + torch + ending])

    return LoraWeights(
        np.ascontiguousarray(get(A).T), np.ascontiguousarray(get(B).T), scale, get(MAGNITUDE) if dora else None
    )
