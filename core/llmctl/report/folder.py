"""Reading the output folder of a run: ``run.json`` and ``metrics.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.errors import ConfigError, FileError
from llmctl.io.written import MetricsRow, Run, parse_written, read_written

METRICS, INFO = "metrics.jsonl", "run.json"
BOOKKEEPING = frozenset({"step", "epoch"})
"""Keys of an evaluation's row that are not metrics."""

LARGEST = 1e30
"""Larger numbers are not drawn: sums of them are not finite."""

Rows = Sequence[Mapping[str, Any]]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class RunFolder:
    """The records of a run.

    Attributes:
        path: Its output folder.
        info: Content of ``run.json``; empty if it does not exist yet.
        rows: Rows of ``metrics.jsonl``.
    """

    path: Path
    info: Mapping[str, Any]
    rows: Rows

    @property
    def last_step(self) -> int:
        """Last step that is recorded, in ``metrics.jsonl`` or ``run.json``."""
        recorded = [self.info.get("steps"), self.info.get("outcome", {}).get("step")]
        return int(max([0, *(row["step"] for row in self.rows), *filter(_is_number, recorded)]))

    def points(self, key: str) -> Points:
        """(step, value) of every row with a finite number under this key that can be drawn."""
        found = [(float(row["step"]), float(row[key])) for row in self.rows if _is_number(row.get(key))]
        return [(step, value) for step, value in found if abs(value) < LARGEST]

    def evaluations(self, key: str) -> Points:
        """As ``points``, of an evaluation metric: before the first step too, where that was measured."""
        before = self.info.get("before", {}).get("metrics", {}).get(key)
        found = self.points(key)
        measured = _is_number(before) and abs(before) < LARGEST and not (found and found[0][0] == 0)
        return [(0.0, float(before)), *found] if measured else found

    def tokens(self) -> int:
        """Tokens seen in training, up to the last row."""
        return int(sum(value for _, value in self.points("tokens")))

    def evaluated(self) -> list[str]:
        """Names of the evaluation metrics, in order of appearance."""
        names: dict[str, None] = {}
        for row in self.rows:
            if "loss" not in row:
                names.update(dict.fromkeys(name for name in row if name not in BOOKKEEPING))
        return list(names)

    def last_evaluation(self) -> dict[str, float]:
        """Metrics of the last evaluation; empty if there is none."""
        for row in reversed(self.rows):
            if "loss" not in row:
                return {name: value for name, value in row.items() if name not in BOOKKEEPING}
        return {}


def open_run(path: Path) -> RunFolder:
    """Opens the output folder of a run.

    Raises:
        ConfigError: The folder does not exist or is not the output folder of a run.
        FileError: ``run.json`` is damaged.
    """
    if not path.is_dir():
        raise ConfigError(f"{path} does not exist; give the output folder of a run")
    info, rows = read_info(path / INFO), read_rows(path / METRICS)
    if not rows and not (path / INFO).exists():
        raise ConfigError(f"{path} is not the output folder of a run: it has neither {INFO} nor {METRICS}")
    return RunFolder(path, info, rows)


def read_info(path: Path, required: bool = False) -> dict[str, Any]:
    """The content of a run's ``run.json``; empty if it does not exist and is not required.

    Raises:
        FileError: It is damaged, cannot be read, or does not exist though it is required.
    """
    return read_written(path, Run, "restore the file, or start a new run", required)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, without a last line that a crash truncated; empty if the file does not exist.

    Raises:
        FileError: The file cannot be read, or another line is damaged.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(parse_written(line.decode("utf-8"), MetricsRow))
        except ValueError as error:
            if number < len(lines):
                raise FileError(f"{path}:{number} is damaged: {error}; restore the file, or delete the line") from None
    return rows


def _is_number(value: object) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < LARGEST
    return isinstance(value, float) and math.isfinite(value)
