"""The support matrix, generated from what cards imply and claim and from evidence of tests.

Evidence is the file ``evidence.json`` in a plugin's package, written by ``llmctl.testing.plugin``. It is valid for the
versions of plugin and core and for the plugin's code with which it was written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl import plugins
from llmctl._version import __version__
from llmctl.card.capabilities import Experimental, Unsupported
from llmctl.card.support import state
from llmctl.errors import ConfigError, FileError, PluginError
from llmctl.io.written import FamilyEvidence, read_written
from llmctl.plugins.hookspecs import API

EVIDENCE = "evidence.json"
CODE = ("*.py", "*.csv")
"""Files of a package that evidence depends on: code, and tables that cards read."""
COLUMNS = {
    "pretrain": "Pretrain",
    "sft": "SFT",
    "lora": "LoRA",
    "prefix-tuning": "Prefix Tuning",
    "dpo": "DPO",
    "quantize": "Quantization",
    "convert": "Weight convert",
    "fused": "Fused inference",
    "fused-lora": "Fused LoRA",
    "fused-prefix": "Fused prefix",
    "wint8": "WINT8",
    "wint4": "WINT4",
    "static": "Static export",
    "serving": "Serving",
    "tensor-parallel": "Tensor parallel",
    "pipeline": "Pipeline",
    "sharding": "Sharding",
    "expert-parallel": "Expert parallel",
}
BEGIN, END = "<!-- matrix:begin -->", "<!-- matrix:end -->"
UPDATE = "llmctl models --update-matrix"


@dataclass(frozen=True)
class Cell:
    """A cell: ``yes``, ``unverified``, ``experimental``, ``no`` or ``broken``, and its reason or note."""

    label: str
    note: str = ""


def rows() -> dict[str, dict[str, Cell]]:
    """Family -> method -> cell, for every installed family."""
    table, families = {}, plugins.Families()
    for name in families.names:
        try:
            plugin = families.load(name)
        except PluginError as error:
            table[name] = {method: Cell("broken", str(error).splitlines()[0]) for method in COLUMNS}
            continue
        table[name] = row(plugin)
    return table


def row(plugin: plugins.Plugin) -> dict[str, Cell]:
    """Method -> cell of one family."""
    evidence = _evidence(plugin)
    return {method: _cell(plugin, method, evidence) for method in COLUMNS}


def markdown(table: dict[str, dict[str, Cell]]) -> str:
    """The matrix as a Markdown table, followed by its notes."""
    notes: list[str] = []
    lines = ["| family | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, cells in table.items():
        lines.append(f"| {name} | " + " | ".join(_text(cells[method], notes) for method in COLUMNS) + " |")
    return "\n".join([*lines, "", *(f"{number}. {note.replace('<', '&lt;')}" for number, note in enumerate(notes, 1))])


def as_json(table: dict[str, dict[str, Cell]]) -> dict[str, Any]:
    """The matrix as JSON data."""
    return {
        name: {method: {"label": cell.label, "note": cell.note} for method, cell in cells.items()}
        for name, cells in table.items()
    }


def check(file: Path) -> None:
    """Checks that the text between the markers of a file is the matrix.

    Raises:
        ConfigError: It is not, or there are no markers.
    """
    _, found, _ = _parts(file)
    if found.strip() != markdown(rows()).strip():
        raise ConfigError(f"the support matrix in {file} is stale; run: {UPDATE} {file}")


def update(file: Path) -> None:
    """Writes the matrix between the markers of a file.

    Raises:
        ConfigError: There are no markers.
    """
    head, _, tail = _parts(file)
    file.write_text(f"{head}{BEGIN}\n{markdown(rows())}\n{END}{tail}", encoding="utf-8")


def code_hash(folder: Path) -> str:
    """First 16 hex digits of the SHA-256 of a package's code and tables: names and lines, sorted by name."""
    digest = hashlib.sha256()
    files = (file for pattern in CODE for file in folder.rglob(pattern))
    for name, file in sorted((file.relative_to(folder).as_posix(), file) for file in files):
        lines = file.read_bytes().splitlines()
        digest.update(b"\n".join([name.encode(), str(len(lines)).encode(), *lines, b""]))
    return digest.hexdigest()[:16]


def _cell(plugin: plugins.Plugin, method: str, evidence: dict[str, Any] | str) -> Cell:
    found = state(plugin.card, method)
    if isinstance(found, Unsupported):
        return Cell("no", found.reason)
    if isinstance(found, Experimental):
        return Cell("experimental", found.note)
    if isinstance(evidence, str):
        return Cell("unverified", evidence)
    outcomes: Sequence[str] = list(evidence.get("outcomes", {}).get(method, {}).values())
    found_with = tuple(evidence.get(key) for key in ("version", "core", "code"))
    current = found_with == (plugin.installed.version, __version__, code_hash(plugin.folder))
    current = current and str(evidence.get("api", "")).partition(".")[0] == str(API[0])
    if current and outcomes and all(outcome == "passed" for outcome in outcomes):
        return Cell("yes")
    return Cell("unverified", "no passing evidence for the installed versions and the plugin's code")


def _evidence(plugin: plugins.Plugin) -> dict[str, Any] | str:
    """The evidence of a family; or why there is none."""
    try:
        path = plugin.folder / EVIDENCE
        content = read_written(path, dict[str, FamilyEvidence], "run the plugin's tests again")
        return dict(content.get(plugin.card.name, {}))
    except FileError as error:
        return str(error)


def _text(cell: Cell, notes: list[str]) -> str:
    if not cell.note:
        return cell.label
    if cell.note not in notes:
        notes.append(cell.note)
    return f"{cell.label} ({notes.index(cell.note) + 1})"


def _parts(file: Path) -> tuple[str, str, str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    if BEGIN not in text or END not in text.partition(BEGIN)[2]:
        raise ConfigError(f"{file} has no markers for the matrix; put the lines {BEGIN} and {END} where it should be")
    head, _, rest = text.partition(BEGIN)
    found, _, tail = rest.partition(END)
    return head, found, tail
