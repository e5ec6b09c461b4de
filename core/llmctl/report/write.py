"""Writing reports: the page of one run, or the comparison of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmctl.errors import ConfigError
from llmctl.io.atomic import atomic_file
from llmctl.report import markup
from llmctl.report.comparison import comparison
from llmctl.report.folder import open_run
from llmctl.report.page import page

NAME, SEVERAL = "report.html", "comparison.html"


def write(folders: Sequence[Path], target: Path | None = None) -> Path:
    """Writes the report of one run, or the comparison of several; returns the path of the file.

    Args:
        folders: Output folders of runs.
        target: The file; None = ``report.html`` in the folder of the run, or ``comparison.html`` in the current folder.

    Raises:
        ConfigError: A folder is not that of a run, or the file exists and is not a report.
        FileError: The file cannot be written.
    """
    runs = [open_run(folder) for folder in folders]
    target = target or (folders[0] / NAME if len(folders) == 1 else Path(SEVERAL))
    _check_replaceable(target)
    text = page(runs[0]) if len(runs) == 1 else comparison(runs)
    with atomic_file(target) as file:
        file.write_text(text, encoding="utf-8")
    return target


def _check_replaceable(target: Path) -> None:
    if target.is_dir():
        raise ConfigError(f"{target} is a folder; give a file, such as {target / NAME}")
    if target.exists() and markup.GENERATOR.encode() not in target.read_bytes()[:1000]:
        raise ConfigError(f"{target} exists and is not a report; choose another file or delete it")
