"""Checkpoint folders: reading, checking, loading, saving and converting them, without torch.

``hf_config`` reads config.json, ``folder`` opens weights, ``formats`` parses their files, ``naming`` detects the layout,
``load`` fills a layer, ``save`` writes a folder, ``build`` goes from a folder to a layer, ``convert`` from folder to folder;
``slices`` splits fused tensors, ``shards`` and ``merge_ranks`` handle files of tensor-parallel ranks, ``partial`` reads the part of a
model that one rank of a run holds, ``gguf`` reads and writes GGUF files.

Weights are stored in the layout of Hugging Face (``hf``, linears [out, in]) or of paddle (``native``, linears [in, out]),
which are distinguished by tensor names. Opening a folder reads headers only; all names and shapes are checked against the card
before any tensor is loaded, and tensors are streamed one by one. Which tensor of a file becomes which tensor of the model
is data: the weight mappings of ``llmctl.card.weight_map``. Names below are resolved on first use, so that reading a
config.json imports no numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmctl.checkpoint.folder import WeightFolder, open_folder
    from llmctl.checkpoint.formats.tensor_info import TensorInfo
    from llmctl.checkpoint.hf_config import read_config
    from llmctl.checkpoint.load import load_weights
    from llmctl.checkpoint.save import save_weights
    from llmctl.io.atomic import atomic_file, atomic_folder

__all__ = [
    "TensorInfo",
    "WeightFolder",
    "atomic_file",
    "atomic_folder",
    "load_weights",
    "open_folder",
    "read_config",
    "save_weights",
]

_MODULES = {
    "TensorInfo": "llmctl.checkpoint.formats.tensor_info",
    "WeightFolder": "llmctl.checkpoint.folder",
    "atomic_file": "llmctl.io.atomic",
    "atomic_folder": "llmctl.io.atomic",
    "load_weights": "llmctl.checkpoint.load",
    "open_folder": "llmctl.checkpoint.folder",
    "read_config": "llmctl.checkpoint.hf_config",
    "save_weights": "llmctl.checkpoint.save",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
