"""``llmctl.load``: the model and tokenizer of a model or adapter folder, in two lines of Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from llmctl.card.family import Family
    from llmctl.tokenizers import Tokenizer

DTYPES = ("float32", "float64")


@overload
def load(
    folder: str | Path,
    family: str = "auto",
    dtype: str = "float32",
    base: str | Path | None = None,
    tokenizer: Literal[True] = True,
) -> tuple[Any, Tokenizer]: ...


@overload
def load(
    folder: str | Path,
    family: str = "auto",
    dtype: str = "float32",
    base: str | Path | None = None,
    *,
    tokenizer: Literal[False],
) -> Any: ...


def load(
    folder: str | Path,
    family: str = "auto",
    dtype: str = "float32",
    base: str | Path | None = None,
    tokenizer: bool = True,
) -> Any:
    """Loads the model of a folder, in evaluation mode, and its tokenizer.

    Args:
        folder: A model folder in Hugging Face's layout, or written by ``llmctl convert``; an adapter folder; the output folder
            of a run; or a name on a hub, ``"owner/name"``.
        family: Name of a family, or ``"auto"`` for the one that claims the folder's architecture.
        dtype: ``"float32"`` or ``"float64"``, the type to compute in.
        base: Folder of an adapter's base model; default: the one that the adapter names.
        tokenizer: ``False`` loads the model alone, also from a folder that has no tokenizer.

    Returns:
        A ``paddle.nn.Layer`` that gives logits for token ids, and a tokenizer with ``encode`` and ``decode``; with
        ``tokenizer=False`` the layer.

    Raises:
        LlmctlError: No family fits, tensors are not exactly the card's, or there is no tokenizer.
    """
    from llmctl.adapters.folder import is_adapter
    from llmctl.checkpoint.locate import locate
    from llmctl.errors import ConfigError

    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} is not supported; choose {' or '.join(DTYPES)}")
    folder = locate(folder)
    if is_adapter(folder):
        return _adapted(folder, locate(base) if base else None, family, dtype, tokenizer)
    if base is not None:
        raise ConfigError(f"base={base} has no effect: {folder} holds no adapter")
    from llmctl.checkpoint.build import check_model

    checked = check_model(folder, family)
    found = _tokenizer(folder, checked.plugin.card, checked.dims.vocab) if tokenizer else None
    return _ready(checked.layer(dtype), found)


def _adapted(folder: Path, base: Path | None, family: str, dtype: str, tokenizer: bool) -> Any:
    from llmctl.adapters.attach import adapted_model
    from llmctl.adapters.folder import open_adapter, tokenizer_folder

    opened = open_adapter(folder, base, family)
    home = tokenizer_folder(folder, opened.base)
    found = _tokenizer(home, opened.plugin.card, opened.dims.vocab) if tokenizer else None
    return _ready(adapted_model(opened, dtype), found)


def _tokenizer(folder: Path, card: Family, vocab: int) -> Tokenizer:
    from llmctl import tokenizers
    from llmctl.errors import FileError, TokenizerError

    try:
        found = tokenizers.load(folder, card=card)
        tokenizers.check_fits(found, vocab, folder)
    except (TokenizerError, FileError) as error:
        raise TokenizerError(f"{error}. llmctl.load(folder, tokenizer=False) loads the model without one") from error
    return found


def _ready(model: Any, tokenizer: Tokenizer | None) -> Any:
    model.eval()
    return (model, tokenizer) if tokenizer else model
