"""Which module of core imports which, read from the source: lazy imports and type hints included."""

import ast
import functools
from pathlib import Path

CORE = Path(__file__).resolve().parents[2] / "core"


def _name(file):
    parts = file.relative_to(CORE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(file): file for file in sorted(CORE.rglob("*.py"))}
"""Name of a module -> its file."""


@functools.cache
def imports(module):
    """Modules that a module imports: llmctl's as far as they are modules, of others what is named."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return frozenset(found - {module})


def circles():
    """Groups of modules that import each other, directly or by way of others."""
    reach = {module: {other for other in imports(module) if other in MODULES} for module in MODULES}
    changed = True
    while changed:
        changed = False
        for reached in reach.values():
            more = set().union(*(reach[other] for other in reached)) - reached
            if more:
                reached |= more
                changed = True
    return [module for module in MODULES if module in reach[module]]
