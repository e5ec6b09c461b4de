"""The order of packages: what may import what, and how many modules a folder holds."""

from collections import Counter
from pathlib import Path

import pytest
from kit.imports import CORE, MODULES, circles, imports

FLOORS = (
    ("errors", "_version"),
    ("io", "runtime"),
    ("card", "hub"),
    ("config", "tokenizers", "nn", "report"),
    ("plugins", "quant"),
    ("checkpoint",),
    ("data",),
    ("adapters",),
    ("parallel", "infer"),
    ("jobs",),
    ("migrate", "train"),
    ("serve",),
    ("api", "commands", "cli"),
)
"""A package imports packages of floors before its own; those of one floor do not import each other, but for the last."""

FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
FLAT = {"commands": 40, "nn": 26}
"""Flat lists of like things, with the most modules that they may have."""


def package(module):
    return module.split(".")[1] if "." in module else module


def shipped():
    return [module for module in MODULES if package(module) != "testing"]


def test_every_package_has_a_floor():
    assert {package(module) for module in shipped()} - {"llmctl", "__main__"} <= set(FLOOR)


@pytest.mark.parametrize("name", sorted({package(module) for module in shipped()} - {"llmctl", "__main__"}))
def test_a_package_imports_only_packages_of_floors_before_it(name):
    upward = [
        f"{module} imports {other}"
        for module in shipped()
        if package(module) == name
        for other in imports(module)
        if other.startswith("llmctl.") and package(other) != name
        and not FLOOR.get(package(other), len(FLOORS)) < FLOOR[name] + (name in FLOORS[-1])
    ]  # fmt: skip
    assert not upward, "\n".join(upward)


def test_no_module_is_part_of_a_circle_even_by_type_hints():
    assert not circles()


def test_what_is_shipped_does_not_import_the_test_kit():
    assert not [m for m in shipped() for other in imports(m) if package(other) == "testing"]


def test_no_folder_holds_more_modules_than_a_reader_can_overlook():
    folders = Counter(file.parent.relative_to(CORE / "llmctl") for file in CORE.glob("llmctl/**/*.py"))
    root = folders.pop(Path("."))
    full = {str(f): n for f, n in folders.items() if n - 1 > FLAT.get(str(f), 20)}
    assert not full and root <= 8
