"""``llmctl.load``: a model or adapter folder as a layer and its tokenizer, in two lines of Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DTYPES = ("float32", "float64")


def load(
    folder: str | Path, family: str = "auto", dtype: str = "float32", base: str | Path | None = None
) -> tuple[Any, Any]:
    """The layer with its weights, ready for inference, and the tokenizer of a folder.

    Args:
        folder: A model folder as Hugging Face lays it out, or one that ``llmctl convert`` wrote; or an adapter's.
        family: Name of a family, or ``"auto"`` for the one that claims the folder's architecture.
        dtype: ``"float32"`` or ``"float64"``, the type to compute in.
        base: For an adapter's folder: the model it belongs to, where that is not the one that it names.

    Returns:
        A ``paddle.nn.Layer`` that gives logits for token ids, and a tokenizer with ``encode`` and ``decode``.

    Raises:
        LlmctlError: No family fits, tensors are not exactly the card's, or there is no tokenizer.
    """
    from llmctl import plugins, tokenizers
    from llmctl.adapters.folder import is_adapter, tokenizer_folder
    from llmctl.checkpoint.build import load_model
    from llmctl.checkpoint.hf_config import read_config
    from llmctl.errors import ConfigError

    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} is not supported; choose {' or '.join(DTYPES)}")
    folder = Path(folder)
    if is_adapter(folder):
        from llmctl.adapters.attach import load_adapted

        model, opened = load_adapted(folder, Path(base) if base else None, family, dtype)
        dims, beside = opened.dims, tokenizer_folder(folder, opened.base)
        tokenizer = tokenizers.load(beside, card=opened.plugin.card)
    elif base is not None:
        raise ConfigError(f"base={base} has no effect: {folder} holds no adapter")
    else:
        plugin = plugins.resolve(family, read_config(folder), str(folder / "config.json"))
        tokenizer = tokenizers.load(folder, card=plugin.card)
        model, dims, _ = load_model(folder, family, dtype)
    tokenizers.check_fits(tokenizer, dims.vocab, folder)
    model.eval()
    return model, tokenizer
