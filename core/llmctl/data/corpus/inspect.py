"""Statistics of a corpus, and the text of one of its documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llmctl import plugins, tokenizers
from llmctl.data.corpus.corpus_files import current
from llmctl.data.corpus.indexed import Corpus
from llmctl.errors import DataError


def summary(corpus: Corpus) -> dict[str, Any]:
    """Statistics: data type, documents, tokens, bytes, and lengths of documents in tokens."""
    ends = np.concatenate([[0], np.cumsum(corpus.sizes, dtype=np.int64)])
    lengths = np.diff(ends[corpus.borders])
    facts: dict[str, Any] = {
        "prefix": corpus.prefix,
        "dtype": corpus.dtype.name,
        "documents": corpus.documents,
        "sequences": len(corpus),
        "tokens": corpus.tokens,
        "bytes": current(corpus.prefix)[1].stat().st_size,
    }
    if len(lengths):
        shortest, longest = int(lengths.argmin()), int(lengths.argmax())
        facts["shortest"] = {"document": shortest, "tokens": int(lengths[shortest])}
        facts["longest"] = {"document": longest, "tokens": int(lengths[longest])}
        facts["mean"] = round(float(lengths.mean()), 1)
        facts["median"] = float(np.median(lengths))
    return facts


def summary_text(facts: dict[str, Any]) -> str:
    """The statistics as text."""
    lines = [
        f"{facts['prefix']}: {facts['documents']:,} documents, {facts['tokens']:,} tokens as {facts['dtype']}, "
        f"{facts['bytes']:,} bytes"
    ]
    if facts["sequences"] != facts["documents"]:
        lines.append(f"{facts['sequences']:,} sequences; samples are made of sequences")
    if "mean" in facts:
        lines += [f"{name}: document {facts[name]['document']:,} with {facts[name]['tokens']:,} tokens"
                  for name in ("shortest", "longest")]  # fmt: skip
        lines.append(f"mean {facts['mean']:,} tokens, median {facts['median']:,g}")
    return "\n".join(lines)


def document(corpus: Corpus, number: int, tokenizer: Path | None = None, family: str = "auto") -> dict[str, Any]:
    """Ids of a document, and its text if a tokenizer is given.

    Args:
        corpus: The corpus.
        number: Index of the document, from 0.
        tokenizer: Model folder with the tokenizer.
        family: Model family whose card completes the tokenizer's files; ``auto`` = from config.json.

    Raises:
        DataError: There is no such document, or an id is not in the tokenizer's vocabulary.
    """
    ids = [int(token) for token in corpus.document(number)]
    shown: dict[str, Any] = {"document": number, "tokens": len(ids), "ids": ids}
    if tokenizer is not None:
        found = tokenizers.load(tokenizer, "none", plugins.card_of(tokenizer, family))
        if ids and max(ids) >= found.vocab_size:
            raise DataError(
                f"document {number} of {corpus.prefix} holds the id {max(ids)}, but the tokenizer in {tokenizer} has "
                f"{found.vocab_size} tokens; use the one that built the corpus"
            )
        shown["text"] = found.decode(ids, skip_special=False)
    return shown
