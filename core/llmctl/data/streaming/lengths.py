"""Lengths of encoded rows, so that batches and packed rows are those of data in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmctl._version import __version__
from llmctl.data.encoded import Coder, Encoded, encode, made_again
from llmctl.data.index_cache import Cache
from llmctl.data.lazy_rows import digest_of
from llmctl.data.streaming.examples import StreamedExamples
from llmctl.errors import TokenizerError
from llmctl.io.written import Lengths

PROBED = 64
"""Examples that are encoded to see whether the cached lengths are those of this tokenizer and template."""


def encode_streamed(
    examples: StreamedExamples[Any],
    coder: Coder[Any],
    settings: Mapping[str, Any],
    chosen_cache: Path | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Encoded[Any]:
    """Encodes all examples once for their lengths, unless the cache has them; each is encoded again when it is needed.

    Args:
        examples: The examples.
        coder: How they become rows.
        settings: What the rows depend on besides.
        chosen_cache: Folder for the lengths; None = next to the first file.
        progress: Called with 1 for each example.

    Raises:
        DataError: Names the rows that cannot be encoded.
    """
    chosen = examples.chosen
    description = {
        "lengths of": [file.facts for file in examples.files],
        "chosen": None if chosen is None else digest_of([chosen], lambda numbers: numbers),
        "settings": dict(settings),
        "llmctl": __version__,
        # A change of the tokenizer, the template or of what the template takes for the present shows in some rows.
        "probe": digest_of(_probe(examples, coder), coder.identity),
    }

    def write(folder: Path) -> Lengths:
        found = encode(examples, coder, False, progress)
        np.save(folder / "kept.npy", found.kept)
        np.save(folder / "lengths.npy", found.rows.lengths)
        return {"truncated": found.truncated, "shortened": found.shortened, "digest": found.rows.digest}

    made = Cache.near(examples.files[0].path, chosen_cache).get_or_write(description, Lengths, write)
    kept, seen = made.arrays["kept"], made.result
    rows = made_again(examples, coder, kept, made.arrays["lengths"], seen["digest"])
    return Encoded(rows, kept, len(examples), seen["truncated"], seen["shortened"])


def _probe(examples: StreamedExamples[Any], coder: Coder[Any]) -> list[Any]:
    rows = []
    for number in np.unique(np.linspace(0, len(examples) - 1, PROBED).astype(np.int64)):
        # Those that cannot be encoded are named when all are.
        with contextlib.suppress(TokenizerError):
            rows.append(coder.encode(examples[int(number)]))
    return [row for row in rows if row is not None]
