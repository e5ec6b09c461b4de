"""Blends of corpora: their weights, and the corpus of each sample.

As in Megatron, sample i comes from the corpus that is furthest behind its share of the first i samples. From this follows
exactly how many samples each corpus must provide; no spare samples are built.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmctl.data.corpus.corpus_files import idx_path
from llmctl.data.corpus.indexed import real_path, without_suffix
from llmctl.errors import DataError

MAX_CORPORA = 2**15 - 1
EXAMPLE = '"0.3 data/web 0.7 data/books"'


@dataclass(frozen=True)
class Blend:
    """Prefixes of corpora and their weights, which sum to 1."""

    prefixes: tuple[str, ...]
    weights: tuple[float, ...]


def parse(items: Sequence[str]) -> Blend:
    """Parses a blend.

    Args:
        items: Prefixes, folders, or ``weight prefix`` pairs, in one string or several. A folder means all corpora in
            it, which share its weight. Without weights, every corpus has weight 1; a corpus of weight 0 is left out.

    Raises:
        DataError: A corpus is missing or named twice, or weights are missing, negative, not numbers or all 0.
    """
    entries = _entries(_words(items))
    prefixes: list[str] = []
    weights: list[float] = []
    for weight, name in entries:
        found = _corpora(name)
        prefixes += found
        weights += [1.0 if weight is None else weight / len(found)] * len(found)
    _check(prefixes, weights)
    # ``assign`` would take samples from a corpus of weight 0 whenever all others are exactly at their share.
    kept = [(name, weight) for name, weight in zip(prefixes, weights, strict=True) if weight > 0]
    shares = np.array([weight for _, weight in kept], np.float64)
    shares /= shares.sum()
    return Blend(tuple(name for name, _ in kept), tuple(map(float, shares)))


def assign(weights: Sequence[float], samples: int) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """The corpus of each sample, int16 [samples], and its index within that corpus, int64 [samples].

    Takes about a microsecond per sample and corpus.
    """
    chosen, within = np.zeros(samples, np.int16), np.arange(samples, dtype=np.int64)
    if len(weights) > 1:
        taken = [0] * len(weights)
        others = list(enumerate(weights))[1:]
        first = weights[0]
        for i in range(samples):
            position = float(max(i, 1))
            behind, most = 0, first * position - taken[0]
            for corpus, weight in others:
                error = weight * position - taken[corpus]
                if error > most:
                    behind, most = corpus, error
            chosen[i], within[i] = behind, taken[behind]
            taken[behind] += 1
    return chosen, within


def _words(items: Sequence[str]) -> list[str]:
    """Splits items at spaces, unless the whole item is the name of a corpus or folder."""
    words: list[str] = []
    for item in items:
        words += [item] if _exists(item) else item.split()
    return words


def _entries(words: Sequence[str]) -> list[tuple[float | None, str]]:
    numbers = [None if _exists(word) else _number(word) for word in words]
    if all(number is None for number in numbers):
        return [(None, word) for word in words]
    entries: list[tuple[float | None, str]] = []
    for i in range(0, len(words), 2):
        number = numbers[i]
        if number is None:
            raise DataError(f"{words[i]} has no weight, but others have; give all a weight as in {EXAMPLE}, or none")
        if i + 1 == len(words) or numbers[i + 1] is not None:
            raise DataError(f"no corpus follows the weight {words[i]}; write weights and corpora as in {EXAMPLE}")
        if not 0 <= number < math.inf:
            raise DataError(f"the weight {words[i]} of {words[i + 1]} must be finite and at least 0")
        entries.append((number, words[i + 1]))
    return entries


def _check(prefixes: Sequence[str], weights: Sequence[float]) -> None:
    if not prefixes:
        raise DataError(f"no corpus is given; give prefixes of .bin and .idx files, with weights as in {EXAMPLE}")
    if len(prefixes) > MAX_CORPORA:
        raise DataError(f"{len(prefixes)} corpora are more than the {MAX_CORPORA} that can be blended; merge some")
    if sum(weights) <= 0:
        raise DataError(f"the weights of {', '.join(prefixes[:5])} are all 0; give at least one a weight above 0")
    files: dict[str, str] = {}
    for name in prefixes:
        file = real_path(name)
        if file in files:
            also = "" if files[file] == name else f", also as {files[file]}"
            raise DataError(f"the corpus {name} is given twice{also}; give it once, with the sum of the weights")
        files[file] = name


def _corpora(name: str) -> list[str]:
    if not Path(name).is_dir() or _is_corpus(name):
        if not _is_corpus(name):
            raise DataError(f"corpus {name} does not exist: {idx_path(without_suffix(name))} is missing")
        return [without_suffix(name)]
    found = sorted(without_suffix(path) for path in Path(name).glob("*.idx"))
    if not found:
        raise DataError(f"the folder {name} holds no corpus (.idx and .bin)")
    return found


def _exists(name: str) -> bool:
    return _is_corpus(name) or Path(name).is_dir()


def _is_corpus(name: str) -> bool:
    return idx_path(without_suffix(name)).is_file()


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
