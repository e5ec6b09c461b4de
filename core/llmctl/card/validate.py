"""Validation of a card: rows, symbols, sizes, names of slots and kernels."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from llmctl.card import slots, support
from llmctl.card.capabilities import METHODS, Unsupported
from llmctl.card.family import PLACEHOLDERS, Family


def validate(card: Family) -> list[str]:
    """The problems of a card, one per line; empty if it is valid."""
    problems = [f"{f.name} is empty" for f in fields(card) if f.name in ("name", "architectures", "params", "modeling")
                and not getattr(card, f.name)]  # fmt: skip
    names = {setting.name for setting in card.settings}
    if card.moe:
        names |= {"experts"}
    for param in card.params:
        try:
            symbols = set().union(*(axis.symbols for axis in param.axes))
        except ValueError as error:
            problems.append(f"{param.name}: {error}")
            continue
        flags = {param.when.removeprefix("not ")} - {""}
        holes = set(re.findall(r"{(\w+)}", param.name))
        problems += [f"{param.name}: {s!r} is not a field of the card" for s in sorted((symbols | flags) - names)]
        problems += [f"{param.name}: unknown placeholder {{{h}}}" for h in sorted(holes - set(PLACEHOLDERS))]
    problems += [f"size {name}: {column!r} is not a field of the card"
                 for name, size in card.sizes.items() for column in size.values if column not in names]  # fmt: skip
    if not re.fullmatch(r"[\w.]+:\w+", card.modeling):
        problems.append(f"modeling={card.modeling!r} is not of the form 'package.module:Class'")
    return problems + _names(card)


def _names(card: Family) -> list[str]:
    """Unknown names on a card, and tensors that the fused decoder would ignore; one per line."""
    lines = []
    for field, known in slots.KERNELS.items():
        if getattr(card, field) not in known:
            lines.append(f"{field}={getattr(card, field)!r} is unknown; known: {', '.join(known)}")
    lines += [
        f"claims: {method!r} is not a method; known: {', '.join(METHODS)}" for method in card.claims.keys() - METHODS
    ]
    for param in card.params:
        _, dot, part = param.slot.partition(".")
        inside = "{layer}" in param.name
        known, where = (slots.SLOTS, "in a layer") if inside else (slots.OUTER_SLOTS, "outside the layers")
        if param.slot and (slots.base_slot(param.slot) not in known or (dot and not (inside and part.isdigit()))):
            parts = ", with .0, .1 for parts" if inside else ""
            lines.append(f"{param.name}: slot={param.slot!r} is unknown {where}; known: {', '.join(known)}{parts}")
    if support.fills_decoder(card) and not isinstance(card.claims.get("fused"), Unsupported):
        lines += [
            f"{param.name} has no slot, so the fused decoder would ignore it; give it a slot, or declare "
            "claims={'fused': Unsupported('why')}"
            for param in card.params
            if not param.slot
        ]
    return lines


def misnamed_class(card: Family, package: str, folder: Callable[[], Path]) -> list[str]:
    """A line if ``modeling`` names a file or class that the plugin's package does not have.

    Args:
        card: The card.
        package: Module of the card.
        folder: Finds the package's folder; called only if the class should be in that package.
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
    """Names that a module defines or imports."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names
