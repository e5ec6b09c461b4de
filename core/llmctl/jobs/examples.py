"""The examples of a job: those of every entry of ``data.train``, read or indexed, and those held out."""

from __future__ import annotations

import random
import warnings
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from llmctl.config.schema import shown
from llmctl.data import reading
from llmctl.data.files import Files, find_files, note_of
from llmctl.errors import ConfigError
from llmctl.io.progress import Progress
from llmctl.jobs.paths import find_paths
from llmctl.plugins import Plugin

E = TypeVar("E")


@dataclass(frozen=True)
class Examples(Generic[E]):
    """The examples of a job.

    Attributes:
        train: Examples to train on, one entry of ``data.train`` after another.
        dev: Held-out examples to evaluate on; may be empty.
        counts: Number of examples of each entry of ``data.train``, in order.
        notes: The formats of the files, and what was left out of them.
    """

    train: Sequence[E]
    dev: Sequence[E]
    counts: Sequence[int]
    notes: Sequence[str]


def read_data(config: Any, plugin: Plugin, make_reader: Callable[[str, Sequence[str]], Any]) -> Examples[Any]:
    """Examples to train on and to evaluate on, from ``data.train`` and ``data.dev``.

    Keys with text that is not read are named in a warning.

    Args:
        config: The configuration.
        plugin: The family.
        make_reader: Makes a reader, which parses lines, from ``data.format`` and ``data.columns``.

    Raises:
        DataError: Lines are malformed; every kind of mistake is named.
        ConfigError: A key of ``train`` needs held-out examples, and there are none.
    """
    data = config.data
    found = [[find_files(path, "train") for path in find_paths(entry, "data.train", plugin)] for entry in data.train]
    dev_files = _dev_files(data, plugin)

    def make() -> Any:
        return make_reader(data.format, data.columns)

    reader = make()
    files = [[file for one in entry for file in one.files] for entry in found]
    train, counts = _read(data, files, "train", make, reader)
    if data.max_examples:
        train, counts = _first(train, counts, data.max_examples)
    dev, _ = _read(data, [dev_files], "dev", make, reader) if dev_files else ([], [])
    if data.dev_size:
        train, dev, counts = _held_out(train, counts, data.dev_size, config.train.seed)
    for warning in reader.warnings():
        warnings.warn(warning, UserWarning, stacklevel=2)
    for key, off in (("best_metric", "eval_loss"), ("patience", 0), ("eval_generate", False)):
        value = getattr(config.train, key, off)
        if not dev and value != off:
            raise ConfigError(f"train.{key}={shown(value)} needs held-out examples; set data.dev")
    left_out = _left_out([one for entry in found for one in entry], dev_files)
    return Examples(train, dev, counts, [reader.summary(), *([left_out] if left_out else [])])


def _dev_files(data: Any, plugin: Plugin) -> list[Path]:
    """The files of ``data.dev``, or those in folders of ``data.train``."""
    if data.dev_size:
        return []
    entries, optional = (data.dev, False) if data.dev else (data.train, True)
    paths = [path for entry in entries for path in find_paths(entry, f"data.{'train' if optional else 'dev'}", plugin)]
    return [file for path in paths if not optional or path.is_dir() for file in find_files(path, "dev", optional).files]


def _left_out(found: Sequence[Files], dev_files: Sequence[Path]) -> str | None:
    """A note on files that are used neither for training nor for evaluation."""
    used = {parent for file in dev_files for parent in (file.resolve(), file.resolve().parent)}
    return note_of([path for files in found for path in files.left_out if path.resolve() not in used])


def _read(
    data: Any, files: Sequence[Sequence[Path]], split: str, make: Callable[[], Any], reader: Any
) -> tuple[Sequence[Any], list[int]]:
    """The examples of files, and how many each entry has.

    Args:
        data: The section ``data``.
        files: The files of each entry.
        split: ``train`` or ``dev``.
        make: Makes another reader.
        reader: Parses lines, and counts what its summary and warnings report.
    """
    paths = [file for entry in files for file in entry]
    passes = 2 if data.streaming else 1
    with Progress(f"reading the {split} data", passes * sum(file.stat().st_size for file in paths)) as progress:
        if data.streaming:
            from llmctl.data.streaming import open_examples

            cache = Path(data.index_cache).expanduser() if data.index_cache else None
            streamed = open_examples(paths, make, reader, split, cache, progress)
            counts = iter([len(file) for file in streamed.files])
            return streamed, [sum(next(counts) for _ in entry) for entry in files]
        read, counted = reading.read_files(paths, reader, split, progress)
    counts = iter(counted)
    return read, [sum(next(counts) for _ in entry) for entry in files]


def _first(train: Sequence[E], counts: Sequence[int], limit: int) -> tuple[Sequence[E], list[int]]:
    """The first examples of each entry, and how many of each there are."""
    kept, start = array("q"), 0
    for count in counts:
        kept.extend(range(start, start + min(count, limit)))
        start += count
    return _take(train, kept), [min(count, limit) for count in counts]


def _held_out(
    train: Sequence[E], counts: Sequence[int], size: float, seed: int
) -> tuple[Sequence[E], Sequence[E], list[int]]:
    """The examples that are left, those held out at random, and how many are left of each entry."""
    count = round(size * len(train)) if size < 1 else int(size)
    if not 0 < count < len(train):
        raise ConfigError(
            f"data.dev_size={size:g} holds out {count} of {len(train)} examples; some must be left on either side"
        )
    chosen = set(random.Random(seed).sample(range(len(train)), count))
    kept = array("q", (index for index in range(len(train)) if index not in chosen))
    left, start = [], 0
    for of_entry in counts:
        left.append(of_entry - sum(start <= index < start + of_entry for index in chosen))
        start += of_entry
    return _take(train, kept), _take(train, sorted(chosen)), left


def _take(rows: Sequence[E], indices: Sequence[int]) -> Sequence[E]:
    if isinstance(rows, list):
        return [rows[index] for index in indices]
    import numpy as np

    chosen: Sequence[E] = rows.choose(np.array(indices, np.int64))  # type: ignore[attr-defined]
    return chosen
