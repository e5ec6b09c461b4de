"""What is wrong with a card, whatever model it describes: rows, symbols, sizes, names of the standard decoder."""

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
    """What is wrong with a card, a line each; empty if nothing is."""
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
        problems += [f"{param.name}: {s!r} is not among the card's settings" for s in sorted((symbols | flags) - names)]
        problems += [f"{param.name}: unknown placeholder {{{h}}}" for h in sorted(holes - set(PLACEHOLDERS))]
    problems += [f"size {name}: {column!r} is not among the card's settings"
                 for name, size in card.sizes.items() for column in size.values if column not in names]  # fmt: skip
    if not re.fullmatch(r"[\w.]+:\w+", card.modeling):
        problems.append(f"modeling={card.modeling!r} is not of the form 'package.module:Class'")
    return problems + _names(card)


def _names(card: Family) -> list[str]:
    """Names on a card that nobody knows, and tensors that the fused decoder would pass over; a line each."""
    lines = []
    for field, known in slots.KERNELS.items():
        if getattr(card, field) not in known:
            lines.append(f"{field}={getattr(card, field)!r} is unknown; known: {', '.join(known)}")
    lines += [
        f"claims: {method!r} is no method; known: {', '.join(METHODS)}" for method in card.claims.keys() - METHODS
    ]
    for param in card.params:
        _, dot, part = param.slot.partition(".")
        inside = "{layer}" in param.name
        known, where = (slots.SLOTS, "in a layer") if inside else (slots.OUTER_SLOTS, "outside the layers")
        if param.slot and (slots.place(param.slot) not in known or (dot and not (inside and part.isdigit()))):
            parts = ", with .0, .1 for parts" if inside else ""
            lines.append(f"{param.name}: slot={param.slot!r} is unknown {where}; known: {', '.join(known)}{parts}")
    if support.fills_the_standard_decoder(card) and not isinstance(card.claims.get("fused"), Unsupported):
        lines += [
            f"{param.name} has no slot, so that the fused decoder would leave it out; give it one, as the others have, or "
            "say claims={'fused': Unsupported('why')}"
            for param in card.params
            if not param.slot
        ]
    return lines


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
