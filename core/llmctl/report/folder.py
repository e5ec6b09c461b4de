"""Reading the output folder of a run: ``run.json`` and ``metrics.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.errors import ConfigError
from llmctl.io.json_object import parse_json, read_json

METRICS, INFO = "metrics.jsonl", "run.json"
BOOKKEEPING = frozenset({"step", "epoch"})
"""Keys of an evaluation's row that are not metrics."""

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
        """(step, value) of every row with a finite number under this key."""
        return [(float(row["step"]), float(row[key])) for row in self.rows if _is_number(row.get(key))]

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
    info, rows = read_json(path / INFO), read_rows(path / METRICS)
    if not rows and not (path / INFO).exists():
        raise ConfigError(f"{path} is not the output folder of a run: it has neither {INFO} nor {METRICS}")
    return RunFolder(path, info, rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, up to a line that a crash truncated; empty if the file does not exist."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(parse_json(line))
        except ValueError:
            break
    return [row for row in rows if isinstance(row, dict) and _is_number(row.get("step"))]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
