"""The folder that is meant by what a user calls a model."""

from __future__ import annotations

from pathlib import Path

from llmctl.errors import CheckpointError
from llmctl.hub.find import model_folder
from llmctl.report.folder import INFO

MODEL, CONFIGURATION = "model", "config.yaml"


def locate(name: str | Path, revision: str = "", weights: bool = True) -> Path:
    """The folder of a model or adapter.

    Args:
        name: The folder itself; a GGUF file, which is opened as a folder; the output folder of a training run, which stands for the trained model in it; or a name on a
            hub, whose model is downloaded. A folder that does not exist is returned as it is.
        revision: Branch, tag or commit of a name on a hub.
        weights: False downloads configuration and tokenizer only.

    Raises:
        LlmctlError: It is the output folder of a run that has no trained model yet, or the model cannot be downloaded.
    """
    folder = model_folder(name, revision, weights=weights)
    if folder.suffix == ".gguf" and folder.is_file():
        from llmctl.checkpoint.gguf.folder import as_folder

        return as_folder(folder)
    if not (folder / INFO).is_file() or not (folder / CONFIGURATION).is_file():
        return folder
    if not (folder / MODEL).is_dir():
        raise CheckpointError(
            f"{folder} is the output folder of a run that is not finished, so it has no {folder / MODEL}; resume the run with "
            f"--resume, or name a checkpoint in {folder / 'checkpoints'}"
        )
    return folder / MODEL
