"""Tokenizers that the library ``tokenizers`` runs, whichever file they were read from.

A rendered text is encoded by the library in one go, special tokens included, so that all flags of its tokens (lstrip,
rstrip, single_word, normalized) and of its pre-tokenizer hold as in transformers. Two things differ from transformers:
a name of a special token in a user's text stays text (``protect``), and so does every name in a text that is encoded
without special tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from llmctl.card.tokens import TokenFacts
from llmctl.errors import TokenizerError, require
from llmctl.tokenizers import protect, special, token_names, untrusted
from llmctl.tokenizers.base import Tokenizer

ANCHOR = "\n"
"""A stand-in for the text before, where text continues; tokenizers that begin a text with a space never join it
to what follows."""

AFTER = "\ue0f3\ue0f2\ue0f3"
"""A stand-in for a special token, after which text is encoded separately; users cannot write it, as it contains a mark."""


class Piece(NamedTuple):
    """A token of a text: its id and the characters that it covers."""

    token: int
    start: int
    end: int

    def moved(self, offset: int) -> Piece:
        """The token in a text that begins elsewhere."""
        return Piece(self.token, self.start + offset, self.end + offset)


class LibraryTokenizer(Tokenizer):
    """A tokenizer of the library.

    Args:
        folder: The model folder.
        inner: The library's object.
        facts: What the card says.
        adds_bos: Whether bos comes before a text where no file says anything about it; None = as ``inner`` does.
        where: The file that it was read from, for messages.

    Raises:
        TokenizerError: The library cannot encode with it.
    """

    def __init__(
        self, folder: Path, inner: Any, facts: TokenFacts, adds_bos: bool | None = None, where: str = "tokenizer.json"
    ):
        self._inner, self._where = inner, folder / where
        self._inner.no_truncation()
        self._inner.no_padding()
        self._library = require("tokenizers", "run", "the tokenizer")
        own: dict[bool, dict[str, int]] = {True: {}, False: {}}
        for token, row in self._inner.get_added_tokens_decoder().items():
            own[row.special][row.content] = token
        vocabulary = special.Vocabulary(
            inner.token_to_id,
            inner.id_to_token,
            own[True],
            own[False],
            affixes=self._affixes() if adds_bos is None else None,
            adds_bos=bool(adds_bos),
            is_text=self._is_text,
        )
        super().__init__(folder, special.read(folder, vocabulary, facts))
        self._add(self.special.ids)
        decoder = self._inner.get_added_tokens_decoder()
        self._added_ids = frozenset(decoder)
        self._special_ids = frozenset(token for token, added in decoder.items() if added.special)
        self._normalized = inner.normalizer is not None and any(t.special and t.normalized for t in decoder.values())
        self._spaced = self._run("a").tokens[:1] in (["▁a"], ["▁"])

    @cached_property
    def vocab_size(self) -> int:
        """The highest id plus one."""
        return max([*self._inner.get_vocab().values(), *self.special.ids.values(), -1]) + 1

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids."""
        return str(self._inner.decode(list(ids), skip_special_tokens=skip_special))

    def token_bytes(self, token: int) -> bytes:
        """As `Tokenizer.token_bytes`."""
        name = self._inner.id_to_token(token)
        if name is None:
            return b""
        return str(name).encode() if token in self._added_ids else token_names.bytes_of(str(name), self._byte_level)

    @cached_property
    def _byte_level(self) -> bool:
        """Whether characters of the vocabulary stand for bytes."""
        return token_names.is_byte_level(self._inner.to_str())

    encodes_whole = True

    def encode_pieces(self, pieces: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Ids of each piece of one text, which is encoded in one go; see `Tokenizer.encode_pieces`."""
        texts = [text for text, _ in pieces]
        tokens = self._tokens("".join(texts), start=True)
        prompt = max((index for index, (_, answer) in enumerate(pieces) if answer), default=0)
        if prompt:
            tokens = self._from(tokens, "".join(texts[:prompt]), "".join(texts[prompt:]))
        self._check_rows([token.token for token in tokens])
        starts = [token.start for token in tokens]
        runs: list[list[int]] = []
        first = length = 0
        for text, answer in pieces[:-1]:
            length += len(text)
            last = bisect_left(starts, length, first)
            # A token that covers the border goes with the answer.
            while not answer and last > first and tokens[last - 1].end > length:
                last -= 1
            runs.append([token.token for token in tokens[first:last]])
            first = last
        return [*runs, [token.token for token in tokens[first:]]]

    def _from(self, tokens: list[Piece], prompt: str, rest: str) -> list[Piece]:
        """The tokens of prompt and rest, the prompt's being those of its text alone."""
        border = bisect_left([token.start for token in tokens], len(prompt))
        inside = border and tokens[border - 1].end > len(prompt)
        if not inside and any(token.token in self._added_ids for token in tokens[max(border - 1, 0) : border + 1]):
            return tokens
        alone = self._tokens(prompt, start=True)
        if tokens[: len(alone)] == alone and all(token.start >= len(prompt) for token in tokens[len(alone) :]):
            return tokens
        moved = (token.moved(len(prompt)) for token in self._tokens(rest, start=False))
        return [*alone, *moved]

    def protect(self, text: str) -> str:
        """As `Tokenizer.protect`; special tokens that are found in normalized text too."""
        text = super().protect(text)
        while self._normalized:
            places = [place for piece in self._read(text) if (place := self._begin(text, piece)) is not None]
            if not places:
                break
            for place in reversed(places):
                text = text[:place] + protect.marked(text[place]) + text[place + 1 :]
        return text

    def _parse(self, text: str, start: bool) -> list[int]:
        return [piece.token for piece in self._tokens(text, start)]

    def _tokens(self, text: str, start: bool) -> list[Piece]:
        """Tokens of a text with special tokens and marked names, which stay text."""
        if not start:
            anchor, tokens = self._read(ANCHOR), self._read(ANCHOR + text)
            if tokens[: len(anchor)] != anchor:
                return self._tokens(text, start=True)
            moved = [token.moved(-len(ANCHOR)) for token in tokens[len(anchor) :]]
            return moved if protect.MARK not in text else list(self._unmarked(text, moved))
        tokens = self._read(text)
        return tokens if protect.MARK not in text else list(self._unmarked(text, tokens))

    def _unmarked(self, text: str, tokens: Sequence[Piece]) -> Iterator[Piece]:
        """The tokens, those of each stretch of text with marks encoded anew without them."""
        low = index = 0
        while True:
            after = next((i for i in range(index, len(tokens)) if self._is_added(text, tokens[i])), len(tokens))
            high = tokens[after].start if after < len(tokens) else len(text)
            if protect.MARK in text[low:high]:
                yield from self._literal_tokens(text[low:high], low)
            else:
                yield from tokens[index:after]
            if after == len(tokens):
                return
            yield tokens[after]
            low, index = tokens[after].end, after + 1

    def _is_added(self, text: str, piece: Piece) -> bool:
        """Whether a piece of a marked text is an added token, not one of the bytes of a mark that has the same id."""
        return piece.token in self._added_ids and not protect.is_marked(text[piece.start : piece.end])

    def _literal_tokens(self, marked: str, offset: int) -> Iterator[Piece]:
        """Tokens of a stretch in which names of special tokens are text, at the places of its marked form."""
        places = [0]
        plain = protect.unmark(marked)
        for character in _units(marked):
            places.append(places[-1] + len(character))
        before = AFTER if offset else ""
        encoding = self._run(before + plain, self._literal)
        for token, (low, high) in zip(encoding.ids[bool(before) :], encoding.offsets[bool(before) :], strict=True):
            low, high = max(low - len(before), 0), max(high - len(before), 0)
            yield Piece(token, offset + places[low], offset + places[high])

    def _encode(self, text: str, start: bool) -> list[int]:
        inner = self._inner
        if self._names_special(text):
            inner, text = self._literal, text.replace(AFTER, "")
        if start or not self._spaced:
            return list(self._run(text, inner).ids)
        anchor, ids = self._run(ANCHOR, inner).ids, self._run(ANCHOR + text, inner).ids
        return list(ids[len(anchor) :] if ids[: len(anchor)] == anchor else self._run(text, inner).ids)

    def _names_special(self, text: str) -> bool:
        """Whether a name in the text would become a special token."""
        if self._special_names.search(text):
            return True
        return self._normalized and any(self._begin(text, piece) is not None for piece in self._read(text))

    def _begin(self, text: str, piece: Piece) -> int | None:
        """Where the name of a special token begins in a text; None if the piece is no special token that text names."""
        if piece.token not in self._special_ids:
            return None
        name = text[piece.start : piece.end]
        place = piece.start + len(name) - len(name.lstrip())
        unknown = piece.token == self.special.unk_id and self._inner.id_to_token(piece.token) not in name
        return None if unknown or place >= piece.end else place

    @cached_property
    def _literal(self) -> Any:
        """The same tokenizer, to which names of special tokens are text."""
        inner = self._library.Tokenizer.from_str(self._inner.to_str())
        inner.add_tokens([self._library.AddedToken(AFTER, normalized=False)])
        inner.encode_special_tokens = True
        return inner

    def _is_text(self, token: int) -> bool:
        """Whether text gives this id."""
        return token in self._run(str(self._inner.decode([token], skip_special_tokens=False))).ids

    def _read(self, text: str) -> list[Piece]:
        encoding = self._run(text)
        return [Piece(token, low, high) for token, (low, high) in zip(encoding.ids, encoding.offsets, strict=True)]

    def _run(self, text: str, inner: Any = None) -> Any:
        try:
            return (inner or self._inner).encode(text, add_special_tokens=False)
        except BaseException as error:
            raise _failure(self._where, error) from None

    def _add(self, ids: Mapping[str, int]) -> None:
        """Tells the library which of its tokens are special, where only other files say so; flags stay as they are."""
        decoder = self._inner.get_added_tokens_decoder()
        new = [
            name for name, token in ids.items()
            if self._inner.token_to_id(name) == token and not (token in decoder and decoder[token].special)
        ]  # fmt: skip
        self._inner.add_special_tokens([self._library.AddedToken(name, special=True, normalized=False) for name in new])

    def _affixes(self) -> special.Affixes:
        body = self._run("a").ids
        try:
            with_special = self._inner.encode("a").ids
        except BaseException as error:
            raise _failure(self._where, error) from None
        start = next((i for i in range(len(with_special)) if with_special[i : i + len(body)] == body), 0)
        return tuple(with_special[:start]), tuple(with_special[start + len(body) :])


def read_json(folder: Path, facts: TokenFacts) -> LibraryTokenizer:
    """The tokenizer that ``tokenizer.json`` describes.

    Raises:
        TokenizerError: The file cannot be read, or its rules could multiply a text.
    """
    path = folder / "tokenizer.json"
    library = require("tokenizers", "run", path.name)
    try:
        content = path.read_text(encoding="utf-8")
        untrusted.check_before(content, path)
        inner = library.Tokenizer.from_str(content)
    except TokenizerError:
        raise
    except BaseException as error:
        raise _failure(path, error) from None
    untrusted.check(inner, path)
    return LibraryTokenizer(folder, inner, facts)


def _failure(path: Path, error: BaseException) -> BaseException:
    """The error to raise: the library raises plain Exception for every kind of damage, and panics that are none."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return TokenizerError(f"{path} cannot be read: {str(error)[:300]}")
    return error


def _units(marked: str) -> Iterator[str]:
    """The characters of a marked text, a mark and the character that it encodes as one."""
    index = 0
    while index < len(marked):
        length = protect.LENGTH if marked[index] == protect.MARK else 1
        yield marked[index : index + length]
        index += length
