"""Byte-level pair encoding from the files that came before ``tokenizer.json``: ``vocab.json`` with ``merges.txt``, and a
file of ranks, ``*.tiktoken``. Both become a tokenizer of the library ``tokenizers``.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from llmctl.card.tokens import TokenFacts
from llmctl.errors import FileError, TokenizerError, require
from llmctl.io.json_object import read_json
from llmctl.io.text import read_text
from llmctl.tokenizers.library import LibraryTokenizer
from llmctl.tokenizers.special import CONFIG, added_tokens
from llmctl.tokenizers.token_names import CHARACTERS

VOCABULARY, MERGES, RANKS = "vocab.json", "merges.txt", "*.tiktoken"


def read_vocabulary(folder: Path, facts: TokenFacts) -> LibraryTokenizer:
    """The tokenizer of ``vocab.json`` and ``merges.txt``.

    Raises:
        TokenizerError: A file cannot be read, or a merge names what is not in the vocabulary.
    """
    library = require("tokenizers", "run", VOCABULARY)
    lines = _text(folder / MERGES).split("\n")
    merges = [tuple(line.rstrip("\r").split(" ")) for line in lines[lines[0].startswith("#version") :] if line.strip()]
    if any(len(pair) != 2 for pair in merges):
        raise TokenizerError(f"{folder / MERGES} must hold two tokens a line")
    try:
        model = library.models.BPE(read_json(folder / VOCABULARY), merges)
    except Exception as error:
        # The library raises plain Exception for every kind of damage.
        raise TokenizerError(f"{folder / VOCABULARY} and {MERGES} do not fit: {error}") from None
    config = read_json(folder / CONFIG)
    inner = _byte_level(library, model, facts, bool(config.get("add_prefix_space", False)))
    text, special = added_tokens(folder, config)
    for name, token in sorted({**text, **special}.items(), key=lambda item: item[1]):
        inner.add_tokens([library.AddedToken(name, special=name in special, normalized=False)])
        if inner.token_to_id(name) != token:
            raise TokenizerError(
                f"{folder}: the added token {name!r} cannot have the id {token}; ids must follow {VOCABULARY}"
            )
    return LibraryTokenizer(folder, inner, facts, adds_bos=False)


def read_ranks(folder: Path, path: Path, facts: TokenFacts) -> LibraryTokenizer:
    """The tokenizer of a file with a token in base64 and its rank in each line.

    Any two tokens that stand side by side merge if their bytes together are a token, the lowest rank first: these are
    the merges, in the order of ranks.

    Raises:
        TokenizerError: The file cannot be read, or the card does not say how text is cut.
    """
    if not facts.pattern:
        raise TokenizerError(
            f"{path} does not say how text is cut into words, nor does the family's card; use a family that knows the file"
        )
    library = require("tokenizers", "run", path.name)
    try:
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in map(str.split, _lines(path))}
    except ValueError as error:
        raise TokenizerError(f"{path} must hold a token in base64 and its rank in each line: {error}") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise TokenizerError(f"{path} must hold each rank from 0 to {len(ranks) - 1} once")
    names = {token: "".join(map(CHARACTERS.__getitem__, token)) for token in ranks}
    vocabulary = {names[token]: rank for token, rank in ranks.items()}
    model = library.models.BPE(vocabulary, _merges(ranks, names), ignore_merges=True)
    inner = _byte_level(library, model, facts, False)
    appended = facts.names_after(folder, read_json(folder / CONFIG))
    inner.add_special_tokens([library.AddedToken(name, special=True, normalized=False) for name in appended])
    return LibraryTokenizer(folder, inner, facts, adds_bos=False)


def _byte_level(library: Any, model: Any, facts: TokenFacts, spaced: bool) -> Any:
    inner = library.Tokenizer(model)
    cut = library.pre_tokenizers.ByteLevel(add_prefix_space=spaced, use_regex=not facts.pattern)
    if facts.pattern:
        words = library.pre_tokenizers.Split(library.Regex(facts.pattern), "isolated")
        cut = library.pre_tokenizers.Sequence([words, cut])
    inner.pre_tokenizer = cut
    inner.decoder = library.decoders.ByteLevel()
    if facts.normal_form:
        inner.normalizer = getattr(library.normalizers, facts.normal_form)()
    return inner


def _merges(ranks: dict[bytes, int], names: dict[bytes, str]) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        parts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        found = [(ranks[left], ranks[right], left, right) for left, right in parts if left in ranks and right in ranks]
        merges += [(names[left], names[right]) for _, _, left, right in sorted(found)]
    return merges


def _lines(path: Path) -> list[str]:
    return [line for line in _text(path).splitlines() if line]


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except FileError as error:
        raise TokenizerError(str(error)) from None
