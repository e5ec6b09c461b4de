"""Contexts, continuations and texts in tokens, cut as lm-evaluation-harness does (``TemplateLM`` and ``HFLM``, 0.4.13).

Names of special tokens in a text are these tokens, and what the tokenizer puts before a text is left out where the text has it.
"""

from __future__ import annotations

from llmctl.errors import DataError, UnsupportedError
from llmctl.infer.perplexity.windows import Window, overlapping
from llmctl.tokenizers import Tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text with those that the tokenizer puts before it, unless the text begins with their name."""
    first = first_token(tokenizer)
    ids = tokenizer.encode(text, add_special=False, parse_special=True)
    begun = first is not None and text.startswith(tokenizer.decode([first], skip_special=False))
    return ids if begun else [*tokenizer.special.prefix, *ids]


def first_token(tokenizer: Tokenizer) -> int | None:
    """The token before a text that has nothing before it: bos, else eos."""
    return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id


def continuation(tokenizer: Tokenizer, context: str, text: str, limit: int) -> Window:
    """What comes after a context; spaces at the end of the context belong to the continuation.

    Args:
        tokenizer: The model's.
        context: What the model has read; may be empty.
        text: The continuation.
        limit: Tokens that the model reads at most; the context loses its beginning.

    Raises:
        DataError: The continuation adds no token, or is longer than the limit.
    """
    before, after = _split(tokenizer, context, text)
    if not after or not before:
        raise DataError(f"the continuation {text!r} adds no token to the context {context[-40:]!r}; change the task")
    if len(after) > limit:
        raise DataError(
            f"the continuation {text[:40]!r} has {len(after)} tokens; that is over the {limit} positions of the model"
        )
    # The last token is predicted and not read.
    ids = [*before, *after][-(limit + 1) :]
    return Window(ids, range(len(ids) - len(after), len(ids)))


def rolling(tokenizer: Tokenizer, text: str, limit: int) -> list[Window]:
    """A whole text in windows of as many tokens as the model reads.

    Args:
        tokenizer: The model's.
        text: The text.
        limit: Tokens that the model reads at most.

    Raises:
        UnsupportedError: The model reads prompts in both directions, or the tokenizer has neither bos nor eos.
    """
    first = first_token(tokenizer)
    if tokenizer.special.bridge:
        raise UnsupportedError(
            "the model reads a prompt in both directions, so a whole text has no log-probabilities (loglikelihood_rolling); choose "
            "tasks with answers"
        )
    if first is None:
        raise UnsupportedError("the tokenizer has neither bos nor eos, so the first token of a text has no context")
    # The last token of a window is predicted and not read.
    return overlapping([first, *encode(tokenizer, text)], limit + 1, limit)


def prompt(tokenizer: Tokenizer, context: str, limit: int) -> list[int]:
    """The end of a context that is continued by the model.

    Args:
        tokenizer: The model's.
        context: The context.
        limit: Tokens that it may have.
    """
    return [*encode(tokenizer, context), *tokenizer.special.bridge][-limit:]


def _split(tokenizer: Tokenizer, context: str, text: str) -> tuple[list[int], list[int]]:
    """Ids of a context and of what comes after it."""
    if tokenizer.special.bridge:  # the answer begins a text
        ids = tokenizer.encode(text.lstrip(" "), add_special=False, parse_special=True)
        return [*encode(tokenizer, context), *tokenizer.special.bridge], ids
    if not context:
        first = first_token(tokenizer)
        ids = tokenizer.encode(text, add_special=False, parse_special=True)
        return (ids[:1], ids[1:]) if first is None or ids[:1] == [first] else ([first], ids)
    kept = context.rstrip()
    whole, before = encode(tokenizer, context + text), encode(tokenizer, kept)
    return before, whole[len(before) :]
