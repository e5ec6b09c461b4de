"""Constraints of answers from JSON schemas, regular expressions and grammars, by llguidance."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import numpy as np

from llmctl.errors import ConfigError
from llmctl.infer.sampling.constraint import Constraint, Matcher, Words
from llmctl.serve.problems import Problem

if TYPE_CHECKING:
    from llmctl.tokenizers import Tokenizer

KEPT = 256
"""Grammars that are kept compiled."""

SIZE = 64 << 10
"""Longest source of a grammar, in characters."""

WHITESPACE = r"[ \n]?"
"""Between the tokens of JSON; more would let a model go on for ever without an answer."""

LIMITS = {"max_grammar_size": 100_000, "max_lexer_states": 50_000, "initial_lexer_fuel": 1_000_000}
"""Limits of llguidance; the last one ends compiling after about 20 ms."""

_THREADS = ThreadPoolExecutor(2, "llmctl-grammar")
"""Compute which tokens may come next while the model computes their logits."""

KINDS = ("json", "regex", "lark", "gbnf")


class Grammars:
    """Compiles grammars for one tokenizer; for several threads.

    Args:
        tokenizer: The model's.
        vocab: Rows of logits, which may be more than the tokenizer's tokens.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self._tokenizer, self._vocab = tokenizer, vocab
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[str, str], Compiled] = OrderedDict()
        self._tokens: Any = None
        self._vocabulary: Any = None

    def prepare(self) -> None:
        """Reads the vocabulary, which takes up to a second; otherwise the first grammar waits for it."""
        with self._lock:
            self._prepared()

    def compiled(self, kind: str, source: str, param: str) -> Compiled:
        """The constraint of a grammar. Compiles: not for the event loop.

        Args:
            kind: One of ``KINDS``.
            source: A JSON schema as text, a regular expression or a grammar.
            param: The field that it comes from.

        Raises:
            Problem: It is too long, not valid, or needs too much time.
        """
        if len(source) > SIZE:
            raise Problem(f"{param}: a grammar may have {SIZE} characters, not {len(source)}", param=param)
        with self._lock:
            found = self._found.get((kind, source))
            if found is not None:
                self._found.move_to_end((kind, source))
                return found
            tokens = self._prepared()
        found = Compiled(matcher_of(kind, source, tokens, param), self._vocab)
        with self._lock:
            self._found[kind, source] = found
            if len(self._found) > KEPT:
                self._found.popitem(last=False)
        return found

    def text_of(self, token: int) -> bytes:
        """What a token adds to the text of an answer; after a grammar was compiled."""
        return b"" if token in self._vocabulary.hidden else self._vocabulary.tokens[token]

    def tokens_of(self, text: bytes) -> list[int] | None:
        """Tokens that write a text, in any division; None = there are none. After a grammar was compiled."""
        try:
            return list(self._tokens.greedy_tokenize(text.decode()))
        except UnicodeDecodeError:
            return None

    def _prepared(self) -> Any:
        if self._tokens is None:
            from llguidance import LLTokenizer, TokenizerWrapper

            ends = [*self._tokenizer.eos_ids]
            self._vocabulary = _Vocabulary(self._tokenizer, self._vocab)
            wrapper = TokenizerWrapper(self._vocabulary)
            self._tokens = LLTokenizer(wrapper, n_vocab=self._vocab, eos_token=ends or None)
        return self._tokens


class Compiled(Constraint):
    """A compiled grammar.

    Args:
        start: llguidance's matcher before any token.
        vocab: Rows of logits.
    """

    def __init__(self, start: Any, vocab: int) -> None:
        self._start, self._vocab = start, vocab

    def matcher(self) -> Matcher:
        """As ``Constraint``."""
        return _Matcher(self._start.deep_copy(), self._vocab)


class _Matcher(Matcher):
    """llguidance's matcher of one answer."""

    def __init__(self, matcher: Any, vocab: int) -> None:
        self._matcher, self._words = matcher, -(-vocab // 32)
        self._next: Future[Words] | None = None

    def prepare(self) -> None:
        """As ``Matcher``."""
        self._next = _THREADS.submit(self._computed)

    def allowed(self) -> Words:
        """As ``Matcher``."""
        return self._computed() if self._next is None else self._next.result()

    def _computed(self) -> Words:
        words = np.empty(self._words, np.uint32)
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if self._matcher.is_error():
            raise ConfigError(f"the grammar has become too complex: {self._matcher.get_error()[:200]}")
        return words

    def accept(self, tokens: Sequence[int]) -> int:
        """As ``Matcher``."""
        self._settle()
        return int(self._matcher.try_consume_tokens([*tokens]))

    def _settle(self) -> None:
        """Waits for what is computed, which is of no use once the answer changes."""
        if self._next is not None:
            wait([self._next])
            self._next = None

    def undo(self, count: int) -> None:
        """As ``Matcher``."""
        if count:
            self._settle()
            self._matcher.rollback(count)

    @property
    def complete(self) -> bool:
        """As ``Matcher``."""
        self._settle()
        return bool(self._matcher.is_stopped())


class _Vocabulary:
    """A tokenizer as llguidance reads it; rows without bytes count as special tokens, which no grammar allows by itself."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        known = min(vocab, tokenizer.vocab_size)
        data = [tokenizer.token_bytes(token) for token in range(known)] + [b""] * (vocab - known)
        special = {token for token in tokenizer.special.ids.values() if token < vocab} | {*tokenizer.eos_ids}
        empty = {token for token, one in enumerate(data) if not one}
        self.tokens = [one or b"<unused %d>" % token for token, one in enumerate(data)]
        self.special_token_ids = sorted(special | empty)
        self.hidden = empty | {token for token in special if not tokenizer.decode([token])}
        self.bos_token_id, self.eos_token_id = tokenizer.bos_id, next(iter(tokenizer.eos_ids), 0)
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        plain = text if isinstance(text, str) else text.decode("utf-8")
        return self._tokenizer.encode(plain, add_special=False, start=False)


def matcher_of(kind: str, source: str, tokens: Any, param: str) -> Any:
    """llguidance's matcher at its beginning.

    Args:
        kind: One of ``KINDS``.
        source: As for ``Grammars.compiled``.
        tokens: llguidance's tokenizer.
        param: The field that it comes from.

    Raises:
        Problem: The grammar is not valid, or needs too much time.
    """
    from llguidance import LLMatcher, LLParserLimits
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        if kind == "json":
            grammar = LLMatcher.grammar_from_json_schema(source, overrides={"whitespace_pattern": WHITESPACE})
        elif kind == "regex":
            grammar = LLMatcher.grammar_from_regex(source)
        else:
            grammar = LLMatcher.grammar_from_lark(any_to_lark(source) if kind == "gbnf" else source)
    except Exception as error:  # of the converters, which raise whatever they meet
        raise Problem(f"{param}: the grammar is not valid: {_first_line(str(error))}", param=param) from None
    found = LLMatcher(tokens, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
    if not found.is_error():
        found.compute_bitmask()  # what it keeps of this every answer has from the beginning
    if found.is_error():
        raise Problem(f"{param}: the grammar cannot be used: {_first_line(found.get_error())}", param=param)
    return found


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[0][:300]
