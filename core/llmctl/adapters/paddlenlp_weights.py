"""The two forms in which PaddleNLP writes an adapter's tensors: one ``.pdparams``, or safetensors with an index.

The second is that of its unified checkpoints, which its recipes for LoRA and prefix tuning ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmctl.checkpoint.folder import INDEX, read_shards
from llmctl.checkpoint.formats import pdparams, safetensors
from llmctl.checkpoint.formats.tensor_info import TensorInfo

UNIFIED = "peft_model.safetensors"


def read_weights(folder: Path, pickled: str) -> Mapping[str, TensorInfo] | None:
    """The tensors of an adapter; None if there are none.

    Args:
        folder: The adapter's folder.
        pickled: Name of its ``.pdparams``.

    Raises:
        CheckpointError: A file is damaged, or one that the index names is not there.
    """
    if (folder / pickled).is_file():
        return pdparams.read_header(folder / pickled)
    if (folder / (UNIFIED + INDEX)).is_file():
        return read_shards(folder / (UNIFIED + INDEX), safetensors.read_header)
    if (folder / UNIFIED).is_file():
        return safetensors.read_header(folder / UNIFIED)
    return None
