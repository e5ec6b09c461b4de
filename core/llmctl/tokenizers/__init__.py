"""Tokenizers of model folders behind one interface: ``load(folder)``.

``tokenizer.json`` comes first, as in transformers, PEFT and vLLM: it is what people edit and extend. Then a sentencepiece
model (``tokenizer.model``), a file of ranks (``*.tiktoken``), and ``vocab.json`` with ``merges.txt``. Files are recognised
by content where a name does not tell. What such a file leaves to a family's code is on its card (``card.tokens``). Names
and ids of special tokens are read in ``special``, chat templates in ``chat``.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from llmctl.card.tokens import TokenFacts
from llmctl.errors import MissingDependencyError, TokenizerError
from llmctl.tokenizers.base import Tokenizer
from llmctl.tokenizers.stream import DecodeStream

if TYPE_CHECKING:
    from llmctl.card.family import Family
    from llmctl.card.tokens import Wording

__all__ = ["DecodeStream", "TokenFacts", "Tokenizer", "check_fits", "load"]

JSON, RANKS, VOCABULARY, MERGES = "tokenizer.json", "*.tiktoken", "vocab.json", "merges.txt"
PROBES = ("Hello world", " two  spaces", "a\nb\tc", "12345.67", "naïve café", "你好，世界", "🙂", "x = {'a': [1]}")
"""Texts that two tokenizers of one folder are compared on."""


def load(folder: Path, chat_template: str = "auto", card: Family | Wording | None = None) -> Tokenizer:
    """The tokenizer of a model folder.

    Args:
        folder: A folder in Hugging Face's layout.
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
    """Checks that every id of the vocabulary has a row in the model's embedding.

    Added tokens without a row are named in a warning; they are an error once a text holds one.

    Raises:
        TokenizerError: The vocabulary without its added tokens has more ids than the embedding rows.
    """
    if tokenizer.vocab_size <= rows:
        return
    if tokenizer.base_size > rows:
        raise TokenizerError(
            f"the tokenizer in {model} has ids up to {tokenizer.base_size - 1}, but the model's embedding has only "
            f"{rows} rows; use the tokenizer that belongs to the model"
        )
    known = {**tokenizer.special.added, **tokenizer.special.ids}
    absent = sorted((token, name) for name, token in known.items() if token >= rows)
    shown = ", ".join(f"{name} ({token})" for token, name in absent[:5])
    warnings.warn(
        f"{model}: the model's embedding has {rows} rows, none for {shown}{' ...' if absent[5:] else ''}; a text may not "
        "hold such a token",
        UserWarning,
        stacklevel=2,
    )
    tokenizer.limit_rows(rows)


def _open(folder: Path, facts: TokenFacts) -> Tokenizer:
    if facts.paddlenlp:
        return _by_paddlenlp(folder, facts)
    from llmctl.tokenizers import byte_pairs, library

    pieces = folder / facts.model
    if (folder / JSON).is_file():
        tokenizer = library.read_json(folder, facts)
        if is_sentencepiece(pieces):
            _compare(tokenizer, folder, facts)
        return tokenizer
    if pieces.is_file() and is_rank_file(pieces):
        return byte_pairs.read_ranks(folder, pieces, facts)
    if pieces.is_file():
        from llmctl.tokenizers.sentencepiece_file import SentencePieceTokenizer

        return SentencePieceTokenizer(folder, facts)
    ranks = sorted(folder.glob(RANKS))
    if ranks:
        return byte_pairs.read_ranks(folder, ranks[0], facts)
    if (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
        return byte_pairs.read_vocabulary(folder, facts)
    return _by_paddlenlp(folder, facts)


def is_rank_file(path: Path) -> bool:
    """Whether a file holds a token in base64 and its rank in each line, as tiktoken writes them, whatever its name is."""
    with open(path, "rb") as stream:
        first = stream.readline(4096)
    return re.fullmatch(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", first) is not None


def is_sentencepiece(path: Path) -> bool:
    """Whether a file may be a sentencepiece model: a message that begins with a piece, not text."""
    if not path.is_file():
        return False
    with open(path, "rb") as stream:
        return stream.read(1) == b"\n" and not is_rank_file(path)


def _compare(tokenizer: Tokenizer, folder: Path, facts: TokenFacts) -> None:
    """Warns where both files are in a folder and do not encode alike."""
    from llmctl.tokenizers.sentencepiece_file import SentencePieceTokenizer

    try:
        other = SentencePieceTokenizer(folder, facts)
        odd = [text for text in PROBES if tokenizer.encode(text, False) != other.encode(text, False)]
    except (TokenizerError, MissingDependencyError):
        return
    if odd:
        warnings.warn(
            f"{folder}: {JSON} and {facts.model} encode {len(odd)} of {len(PROBES)} probes differently, such as "
            f"{odd[0]!r}; {JSON} is used, as in transformers",
            UserWarning,
            stacklevel=2,
        )


def _by_paddlenlp(folder: Path, facts: TokenFacts) -> Tokenizer:
    from llmctl.io.json_object import read_json
    from llmctl.tokenizers.special import CONFIG

    name = facts.paddlenlp or read_json(folder / CONFIG).get("tokenizer_class")
    looked = f"looked for {JSON}, {facts.model}, {RANKS}, and {VOCABULARY} with {MERGES}"
    if not isinstance(name, str):
        raise TokenizerError(f"{folder} has no tokenizer; {looked}")
    from llmctl.tokenizers.paddlenlp_class import PaddleNLPTokenizer

    reason = "" if facts.paddlenlp else f"{folder} has no tokenizer that is read here; {looked}. "
    return PaddleNLPTokenizer(folder, name, facts, reason)
