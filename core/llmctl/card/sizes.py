"""Published checkpoints of a plugin as a table: ``sizes.csv`` in the folder of its cards.

Nothing here imports paddle or numpy.
"""

import csv
from pathlib import Path
from typing import Any

from llmctl.card.family import Size
from llmctl.errors import ConfigError
from llmctl.io.json_object import parse_json

FILE = "sizes.csv"
_ABOUT = ("family", "name", "source", "parameters")


def sizes(card_file: str, family: str) -> dict[str, Size]:
    """The sizes of ``family`` in the table ``sizes.csv`` in the folder of a card, which passes its ``__file__``.

    Columns are family, name, source and parameters, then fields by name; an empty cell is the field's default.

    Raises:
        ConfigError: The table lacks a column, a row is not as long as the header, malformed or a duplicate, or the family
            has none.
    """
    path = Path(card_file).with_name(FILE)
    found: dict[str, Size] = {}
    with path.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream, strict=True)
        header = list(rows.fieldnames or ())
        if tuple(header[: len(_ABOUT)]) != _ABOUT or len(set(header)) < len(header) or not all(header):
            raise ConfigError(
                f"{path}: the header is {','.join(header)}; it must be {','.join(_ABOUT)}, then settings, each once"
            )
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if None in row or None in row.values():
                raise ConfigError(f"{where}: the row is not as long as the header, {len(header)} cells")
            if row["family"] != family:
                continue
            if row["name"] in found:
                raise ConfigError(f"{where}: {family} has the size {row['name']!r} twice")
            if not row["parameters"].isdecimal():
                raise ConfigError(f"{where}: parameters={row['parameters']!r} must be a whole number")
            values = {name: _typed(row[name]) for name in header[len(_ABOUT) :] if row[name]}
            found[row["name"]] = Size(row["source"], int(row["parameters"]), values)
    if not found:
        raise ConfigError(f"{path} has no row of the family {family!r}")
    return found


def _typed(cell: str) -> Any:
    """A whole number, a number, true or false; else text."""
    try:
        return parse_json(cell)
    except ValueError:
        return cell
