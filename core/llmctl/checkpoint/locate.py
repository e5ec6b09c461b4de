"""The folder that is meant by what a user calls a model."""

from __future__ import annotations

from pathlib import Path

from llmctl.errors import CheckpointError
from llmctl.hub.find import model_folder
from llmctl.io import gguf_files
from llmctl.report.folder import INFO

MODEL, CONFIGURATION = "model", "config.yaml"
OTHER_WEIGHTS = (".safetensors", ".bin", ".pdparams", ".npy", ".packed", "export.json")
"""Ends of names of weights and programs that a folder stands for, whatever GGUF files are there too."""

READY = ("config.json", gguf_files.LINK)
"""Files of a folder that ``checkpoint.gguf`` or ``quantize`` made, which is opened as it is."""


def locate(name: str | Path, revision: str = "", weights: bool = True) -> Path:
    """The folder of a model or adapter.

    Args:
        name: The folder itself; a GGUF file, which is opened as a folder, or a folder with nothing but the files of one; the output
            folder of a training run, which stands for the trained model in it; or a name on a hub, whose model is downloaded. A
            folder that does not exist is returned as it is.
        revision: Branch, tag or commit of a name on a hub.
        weights: False downloads configuration and tokenizer only.

    Raises:
        LlmctlError: It is the output folder of a run that has no trained model yet, a folder with several models in GGUF, a GGUF file
            that does not exist, or the model cannot be downloaded.
    """
    folder = model_folder(name, revision, weights=weights)
    if folder.suffix == gguf_files.ENDING and not folder.is_dir():
        return _opened(_existing(folder))
    if not (folder / INFO).is_file() or not (folder / CONFIGURATION).is_file():
        return _opened(folder / file) if (file := _gguf(folder)) else folder
    if not (folder / MODEL).is_dir():
        raise CheckpointError(
            f"{folder} is the output folder of a run that is not finished, so it has no {folder / MODEL}; resume the run with "
            f"--resume, or name a checkpoint in {folder / 'checkpoints'}"
        )
    return folder / MODEL


def _opened(file: Path) -> Path:
    from llmctl.checkpoint.gguf.folder import as_folder

    return as_folder(file)


def _existing(file: Path) -> Path:
    """The file, or another part of its model, which then names the missing ones.

    Raises:
        CheckpointError: There is none.
    """
    parts = (file, *map(file.with_name, gguf_files.parts_of(file.name)))
    if found := next((part for part in parts if part.is_file()), None):
        return found
    others = sorted(other.name for other in file.parent.glob(f"*{gguf_files.ENDING}"))
    there = f"; {file.parent} holds {', '.join(others)}" if others else ""
    raise CheckpointError(f"{file} does not exist{there}")


def _gguf(folder: Path) -> str:
    """The GGUF file that a folder stands for; empty = it holds another model, or none."""
    sizes = {file.name: file.stat().st_size for file in folder.glob("*") if file.is_file()} if folder.is_dir() else {}
    models = gguf_files.models_of(sizes)
    if not models or any(name.endswith(OTHER_WEIGHTS) for name in sizes) or set(READY) <= sizes.keys():
        return ""
    return gguf_files.chosen(models, "", str(folder), lambda name, _: f"Give the path of one: {folder / name}").name
