"""A GGUF file as a model folder: its configuration and tokenizer as files in the user's cache, beside a link to it.

So everything that takes a model folder takes the file. The folder is made once for each state of the file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from llmctl.checkpoint.formats import gguf
from llmctl.checkpoint.formats.tensor_info import TensorInfo
from llmctl.checkpoint.gguf import metadata, vocabulary
from llmctl.checkpoint.gguf.tensors import named_tensors
from llmctl.checkpoint.hf_config import NAME, read_config
from llmctl.errors import CheckpointError
from llmctl.io.atomic import atomic_folder
from llmctl.io.json_object import write_json

LINK, CACHE = "model.gguf", "gguf"
PARTS = "split.count"
FORM = 1
"""Raised when folders of the same file are written otherwise."""


def as_folder(path: Path) -> Path:
    """The model folder of a file.

    Raises:
        CheckpointError: The file is damaged, one part of several, or the cache cannot be written.
        UnsupportedError: No installed family reads it.
    """
    file, status = path.resolve(), path.stat()
    state = repr((FORM, str(file), status.st_size, status.st_mtime_ns))
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmctl" / CACHE
    folder = home / f"{path.stem}-{hashlib.sha256(state.encode()).hexdigest()[:12]}"
    if (folder / NAME).is_file():
        return folder
    opened = gguf.read(path)
    if opened.metadata.get(PARTS, 1) > 1:
        raise CheckpointError(
            f"{path} is one of {opened.metadata[PARTS]} parts of a model; join them: gguf-split --merge"
        )
    card = metadata.plugin_of(opened).card
    config = metadata.config_of(opened, card)
    named_tensors(opened, card, card.dims_from_config(config, str(path)))
    with atomic_folder(folder, overwrite=True) as work:
        write_json(work / NAME, config)
        for name, content in vocabulary.files_of(path, opened.metadata, card).items():
            (work / name).write_bytes(content)
        (work / LINK).symlink_to(file)
    return folder


def read_header(link: Path) -> Mapping[str, TensorInfo]:
    """The tensors of the file in a folder, by their names in Hugging Face's checkpoints.

    Raises:
        CheckpointError: The file is damaged, or does not fit config.json.
    """
    opened = gguf.read(link)
    card = metadata.plugin_of(opened).card
    return named_tensors(opened, card, card.dims_from_config(read_config(link.parent), str(link.parent / NAME)))


def bits_of(folder: Path) -> int:
    """Bits of the codes in a folder's file, the fewest that hold all; 0 = it holds floats."""
    types = {stored.type for stored in gguf.read(folder / LINK).tensors.values() if stored.type.decode is not None}
    return max((8 * kind.nbytes // kind.size for kind in types), default=0)
