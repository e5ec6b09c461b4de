"""Model folders on disk: reading, writing and describing them, without torch.

Reading: ``open_folder``, ``load_weights``, ``read_config`` (``config.json``). Writing: ``save_weights``,
``atomic_folder``, ``atomic_file``. What ``run.json`` records is in ``run_json.py``; a model built from a folder is in
``model.py``. The names here are resolved on first use, so that reading a config imports no numpy.
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
