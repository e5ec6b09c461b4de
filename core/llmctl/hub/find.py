"""Where a model is that is named by a path or a name on a hub."""

from __future__ import annotations

from pathlib import Path

from llmctl.errors import ConfigError
from llmctl.hub.client import Refused
from llmctl.hub.name import MODELSCOPE, parse


def model_folder(value: str | Path, revision: str = "", *, weights: bool = True) -> Path:
    """The folder of a model, or its file in GGUF, downloaded if it is a name on a hub and not in the cache.

    Args:
        value: A path, which takes precedence if it exists; else a name: ``owner/name``, ``hf:name`` or
            ``modelscope:owner/name``, each with ``:Q4_K_M`` or ``:file.gguf``, and with ``@revision``, or without.
        revision: Branch, tag or commit, if the value has none.
        weights: False downloads configuration and tokenizer only, which in GGUF are in the file of the weights.

    Returns:
        The folder, or the file in GGUF, of a model in parts the first; a path that does not exist is returned as it is.

    Raises:
        LlmctlError: The model cannot be downloaded, or a revision is given for a path.
    """
    name = parse(value, revision)
    if name is None:
        if revision:
            raise ConfigError(f"revision={revision} has no effect on {value}, which is a path; leave it out")
        return Path(value).expanduser()
    from llmctl.hub.download import download

    not_a_path = "" if str(value).startswith(f"{name.hub}:") else f"there is no folder {value}, and "
    if name.hub == MODELSCOPE:
        from llmctl.hub.model_scope import ModelScope

        return download(ModelScope("downloading from ModelScope"), name, weights)
    from llmctl.hub.hugging_face import HuggingFace

    try:
        return download(HuggingFace(f"{not_a_path}downloading from the Hugging Face Hub"), name, weights)
    except Refused as error:
        raise Refused(f"{not_a_path}{error}") from error
