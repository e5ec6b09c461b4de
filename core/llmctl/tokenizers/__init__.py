"""Tokenizers of model folders behind one interface: ``load(folder)``.

What a model was trained with comes first: a sentencepiece model (``tokenizer.model``), then a file of ranks
(``*.tiktoken``), then ``tokenizer.json``, then ``vocab.json`` with ``merges.txt``. What such a file leaves to a family's
code stands on its card (``facts.py``). Names and ids of special tokens are read in ``special.py``, chat templates in
``chat.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmctl.card.tokens import TokenFacts
from llmctl.errors import TokenizerError
from llmctl.tokenizers.base import DecodeStream, Tokenizer

if TYPE_CHECKING:
    from llmctl.card.family import Family
    from llmctl.card.tokens import Wording

__all__ = ["DecodeStream", "TokenFacts", "Tokenizer", "check_fits", "load"]

JSON, RANKS, VOCABULARY, MERGES = "tokenizer.json", "*.tiktoken", "vocab.json", "merges.txt"


def load(folder: Path, chat_template: str = "auto", card: Family | Wording | None = None) -> Tokenizer:
    """The tokenizer of a model folder.

    Args:
        folder: A folder as Hugging Face lays it out.
        chat_template: ``"auto"`` = the folder's own if any, ``"family"`` = the card's, ``"none"``, or a file or folder
            with a template.
        card: The family's card, which may say what the files do not.

    Raises:
        TokenizerError: The folder has no tokenizer, or it or the template cannot be read.
        MissingDependencyError: The library for the file is not installed.
    """
    from llmctl.tokenizers.chat import load_template

    folder = Path(folder)
    tokenizer = _open(folder, card.tokens if card else TokenFacts())
    tokenizer.chat_template = load_template(chat_template, folder, tokenizer, card)
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


def _open(folder: Path, facts: TokenFacts) -> Tokenizer:
    if not facts.paddlenlp and (folder / facts.model).is_file():
        from llmctl.tokenizers.sentencepiece_file import SentencePieceTokenizer

        return SentencePieceTokenizer(folder, facts)
    if not facts.paddlenlp:
        from llmctl.tokenizers import byte_pairs, library

        ranks = sorted(folder.glob(RANKS))
        if ranks:
            return byte_pairs.read_ranks(folder, ranks[0], facts)
        if (folder / JSON).is_file():
            return library.read_json(folder, facts)
        if (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
            return byte_pairs.read_vocabulary(folder, facts)
    return _by_paddlenlp(folder, facts)


def _by_paddlenlp(folder: Path, facts: TokenFacts) -> Tokenizer:
    from llmctl.io.json_object import read_json
    from llmctl.tokenizers.special import CONFIG

    name = facts.paddlenlp or read_json(folder / CONFIG).get("tokenizer_class")
    looked = f"looked for {facts.model}, {RANKS}, {JSON}, and {VOCABULARY} with {MERGES}"
    if not isinstance(name, str):
        raise TokenizerError(f"{folder} has no tokenizer; {looked}")
    from llmctl.tokenizers.paddlenlp_class import PaddleNLPTokenizer

    reason = "" if facts.paddlenlp else f"{folder} has no tokenizer that is read here; {looked}. "
    return PaddleNLPTokenizer(folder, name, facts, reason)
