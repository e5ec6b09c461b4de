"""Whether the class that a card names is in its file, found by reading it: importing it would import paddle."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable
from pathlib import Path

from llmctl.card.family import Family


def misnamed_class(card: Family, package: str, folder: Callable[[], Path]) -> list[str]:
    """A line if ``modeling`` names a file or class of the plugin's package that is not there.

    Args:
        card: The card.
        package: Module of the card.
        folder: Finds the package's folder; asked for only if the class is to be in that package.
    """
    module, _, name = card.modeling.partition(":")
    top, *rest = module.split(".")
    if top != package.partition(":")[0].partition(".")[0]:
        return []
    file = folder().joinpath(*rest)
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    if not file.is_file():
        compiled = any(file.parent.glob(f"{file.stem}.*"))
        return [] if compiled else [f"modeling={card.modeling!r}: there is no file {file}"]
    known = _defined(ast.parse(file.read_text(encoding="utf-8"), str(file)))
    if name in known or "*" in known:
        return []
    classes = difflib.get_close_matches(name, known, 1)
    return [
        f"modeling={card.modeling!r}: {file} has no {name!r}" + (f"; did you mean {classes[0]!r}?" if classes else "")
    ]


def _defined(tree: ast.Module) -> set[str]:
    """Names that a module defines or imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names
