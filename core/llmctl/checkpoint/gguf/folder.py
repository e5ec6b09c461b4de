"""A GGUF file as a model folder: its configuration and tokenizer as files in the user's cache, beside a link to it.

So everything that takes a model folder takes the file. The folder is made once for each state of the file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from llmctl.checkpoint.formats.tensor_info import TensorInfo
from llmctl.checkpoint.gguf import metadata, parts, vocabulary
from llmctl.checkpoint.gguf.tensors import named_tensors
from llmctl.checkpoint.hf_config import NAME, read_config
from llmctl.io.atomic import atomic_folder
from llmctl.io.gguf_files import LINK, GgufModel
from llmctl.io.json_object import write_json

CACHE = "gguf"
FORM = 5
"""Raised when folders of the same file are written otherwise."""


def as_folder(path: Path) -> Path:
    """The model folder of a file.

    Args:
        path: The file; of a model in parts any of them.

    Raises:
        CheckpointError: The file is damaged, a part is missing, or the cache cannot be written.
        UnsupportedError: No installed family reads it.
    """
    files = parts.files_of(path)
    # Not what a link stands for, beside which parts and a hub's names are not.
    file = path.parent.resolve() / files[0].name
    state = repr((FORM, str(file), *(fact for one in files for fact in (one.stat().st_size, one.stat().st_mtime_ns))))
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmctl" / CACHE
    folder = home / f"{GgufModel((files[0].name,), 0).stem}-{hashlib.sha256(state.encode()).hexdigest()[:12]}"
    if (folder / NAME).is_file():
        return folder
    opened = parts.read(files[0])
    card = metadata.plugin_of(opened).card
    config = metadata.config_of(opened, card)
    named_tensors(opened, card, card.dims_from_config(config, str(path)))
    with atomic_folder(folder, overwrite=True) as work:
        write_json(work / NAME, config)
        for name, content in vocabulary.files_of(files[0], opened.metadata, card).items():
            (work / name).write_bytes(content)
        (work / LINK).symlink_to(file)
    return folder


def read_header(link: Path) -> Mapping[str, TensorInfo]:
    """The tensors of the file that a folder holds or links to, by their names in Hugging Face's checkpoints.

    Raises:
        CheckpointError: The file is damaged, or does not fit config.json.
    """
    opened = parts.read(_linked(link))
    card = metadata.plugin_of(opened).card
    return named_tensors(opened, card, card.dims_from_config(read_config(link.parent), str(link.parent / NAME)))


def bits_of(folder: Path) -> int:
    """Bits of the codes in a folder's file, the fewest that hold all; 0 = it holds floats."""
    types = {
        stored.type for stored in parts.read(_linked(folder / LINK)).tensors.values() if stored.type.decode is not None
    }
    return max((8 * kind.nbytes // kind.size for kind in types), default=0)


def _linked(link: Path) -> Path:
    """What a link names, which may be a link itself; another file as it is."""
    return link.parent / os.readlink(link) if link.is_symlink() else link
