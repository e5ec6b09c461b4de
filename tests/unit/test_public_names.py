"""Plugins import from three packages only, so that modules of core may move: llmctl, llmctl.nn and, in tests, llmctl.testing."""

import ast
import importlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import llmctl
import llmctl.nn
import llmctl.testing

ROOT = Path(__file__).resolve().parents[2]
FACES = {module.__name__: module for module in (llmctl, llmctl.nn, llmctl.testing)}
FIRST_RELEASE = [
    "API",
    "HF_DECODER",
    "HF_DECODER_ROWS",
    "REQUIRED",
    "Dims",
    "Experimental",
    "Family",
    "LlmctlError",
    "Moe",
    "Param",
    "Setting",
    "Size",
    "Supported",
    "TokenFacts",
    "Unsupported",
    "__version__",
    "hookimpl",
    "linear_rows",
    "load",
    "norm_rows",
    "sizes",
    "template",
]


def skeleton():
    """The Python files of a new plugin, as they are written."""
    for file in sorted((ROOT / "core" / "llmctl" / "skeleton").glob("*.py.txt")):
        text = file.read_text(encoding="utf-8")
        yield f"skeleton/{file.name}", re.sub("@name@|@Name@", "parrot", text)


def guides():
    """The Python blocks of the pages for plugin authors."""
    for page in ("plugins.md", "blocks.md", "goldens.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for number, code in enumerate(re.findall(r"^ *```python\n(.*?)```", text, re.DOTALL | re.MULTILINE)):
            if "import" in code:
                yield f"{page} {number}", textwrap.dedent(code)


def files(pattern):
    return [(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in sorted(ROOT.glob(pattern))]


PACKAGES = [*files("plugins/*/llmctl_*/**/*.py"), *files("tests/plugins/*/fake_*/**/*.py")]
SOURCES = [*PACKAGES, *files("plugins/*/tests/*.py"), *skeleton(), *guides()]


def imports(source):
    """(module, name) for every import of llmctl in a source; the name is empty for ``import module``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "llmctl":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.partition(".")[0] == "llmctl")


@pytest.mark.parametrize(("where", "source"), SOURCES, ids=[where for where, _ in SOURCES])
def test_plugins_and_guides_import_public_names_only(where, source):
    for module, name in imports(source):
        assert module in FACES, f"{where} imports {module}"
        assert not name or name in FACES[module].__all__, f"{where}: {name} is not public in {module}"
        assert module != "llmctl.testing" or (where, source) not in PACKAGES, f"{where} ships an import of the test kit"


def test_many_sources_are_looked_at():
    assert len(SOURCES) > 60 and sum(1 for _, source in SOURCES for _ in imports(source)) > 250


@pytest.mark.parametrize("name", FACES)
def test_every_public_name_can_be_imported(name):
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    assert not [public for public in module.__all__ if not hasattr(module, public)]
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


def test_names_of_the_first_release_stay():
    assert set(FIRST_RELEASE) <= set(llmctl.__all__) and len(FIRST_RELEASE) == 22


def test_the_docstring_groups_every_public_name():
    listed = set(re.findall(r"``(\w+)``", llmctl.__doc__))
    assert not set(llmctl.__all__) - listed - {"__version__"}
    listed = set(re.findall(r"``(\w+)``", llmctl.testing.__doc__)) | {"FamilyConformance"}
    assert not set(llmctl.testing.__all__) - listed


def test_blocks_are_listed_once():
    listed = [name for names in llmctl.nn._MODULES.values() for name in names]
    assert sorted(listed) == sorted(llmctl.nn.__all__)


def test_importing_the_packages_imports_nothing_heavy():
    code = f"import sys, {', '.join(FACES)}; print(*sorted({{'paddle', 'numpy', 'rich', 'pytest'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
