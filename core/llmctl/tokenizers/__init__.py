"""Tokenizers of model folders behind one interface: ``load(folder)``.

A ``tokenizer.model`` (sentencepiece) is what a model was trained with and comes first; a ``tokenizer.json`` is used
where there is none. Names and ids of special tokens are read in ``special.py``, chat templates in ``chat.py``.
"""

from __future__ import annotations

from pathlib import Path

from llmctl.errors import TokenizerError
from llmctl.tokenizers.base import DecodeStream, Tokenizer

__all__ = ["DecodeStream", "Tokenizer", "check_fits", "load"]

JSON, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"


def load(folder: Path, chat_template: str = "auto") -> Tokenizer:
    """The tokenizer of a model folder.

    Args:
        folder: A folder as Hugging Face lays it out.
        chat_template: ``"auto"`` = the folder's own if any, ``"none"``, or a file or folder with a template.

    Raises:
        TokenizerError: The folder has no tokenizer, or it or the template cannot be read.
        MissingDependencyError: The library for the file is not installed.
    """
    from llmctl.tokenizers.chat import load_template

    folder = Path(folder)
    tokenizer = _open(folder)
    tokenizer.chat_template = load_template(chat_template, folder, tokenizer)
    return tokenizer


def check_fits(tokenizer: Tokenizer, rows: int, model: Path) -> None:
    """Passes when every id has a row in the model's embedding.

    Raises:
        TokenizerError: The tokenizer has more ids than the embedding rows.
    """
    if tokenizer.vocab_size > rows:
        raise TokenizerError(
            f"the tokenizer in {model} has ids up to {tokenizer.vocab_size - 1}, but the model's embedding has only "
            f"{rows} rows; use the tokenizer that belongs to the model"
        )


def _open(folder: Path) -> Tokenizer:
    if (folder / SENTENCEPIECE).is_file():
        from llmctl.tokenizers.sentencepiece_file import SentencePieceTokenizer

        return SentencePieceTokenizer(folder)
    if (folder / JSON).is_file():
        from llmctl.tokenizers.json_file import JsonTokenizer

        return JsonTokenizer(folder)
    raise TokenizerError(f"{folder} has no tokenizer; looked for {SENTENCEPIECE} and {JSON}")
