"""Rules of the architecture that a reader may rely on."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import click
import pytest

from llmctl import Dims, Family, nn, plugins
from llmctl.card import slots
from llmctl.cli import COMMANDS, cli

CORE = Path(__file__).resolve().parents[2] / "core"
FAMILIES = ("llama", "baichuan", "qwen", "mixtral", "mistral", "chatglm", "bloom", "gpt2", "gpt3", "gpt-2", "gpt-3")
PROGRAM = re.compile(
    r'LLaMA-Factory|use_llama_pro|Ollama|llama\.cpp|llama-quantize|KINDS = \("llama", "gpt2"\)|"gpt-2"'
)
"""Other programs, a key of their files, and kinds of tokenizers in GGUF, no families."""
TEXT = (".py", ".yaml", ".yml", ".json", ".jinja", ".toml", ".md", ".txt", ".csv", ".tmpl", ".css", ".js", ".html", "")


@pytest.mark.parametrize("family", [*FAMILIES, "opt"])
def test_core_never_names_a_family(family):
    # Three letters are part of other words; a longer name is not, whatever stands around it.
    named = re.compile(r"(?<![a-z0-9_])opt(?![a-z0-9_])" if family == "opt" else family, re.IGNORECASE)
    hits = [
        f"{path.relative_to(CORE)}:{number}: {line.strip()}"
        for path in sorted((CORE / "llmctl").rglob("*"))
        if path.is_file() and path.suffix in TEXT
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if named.search(PROGRAM.sub("", line))
    ]
    assert not hits, "\n".join(hits)


def test_every_installed_family_is_looked_for():
    names = {found.name for found in plugins.installed()}
    assert names and not [name for name in names if not any(known in name for known in (*FAMILIES, "opt"))]


PLUGINS = sorted(path.name for path in (CORE.parent / "plugins").iterdir() if (path / "pyproject.toml").is_file())


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_is_at_most_300_lines_of_python_and_chat_templates(plugin):
    package = CORE.parent / "plugins" / plugin / f"llmctl_{plugin}"
    files = [file for pattern in ("*.py", "*.jinja") for file in sorted(package.rglob(pattern))]
    lines = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert 0 < sum(lines.values()) <= 300, lines


def test_every_block_is_in_the_guide_under_the_idea_that_it_belongs_to():
    page = (CORE.parent / "docs" / "blocks.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## llmctl\.nn: (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(sections) == list(nn._MODULES)
    missing = [
        name for module, names in nn._MODULES.items() for name in names if f"### {name}\n" not in sections[module]
    ]
    assert len(nn.__all__) > 20 and not missing, missing


def test_every_function_and_class_that_cards_use_is_in_the_guide():
    page = (CORE.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^#+ (\w+)$", page, re.MULTILINE))
    used = {name for file in CORE.parent.glob("plugins/*/llmctl_*/*.py") for name in imported_names(file, "llmctl")}
    known = {"hookimpl", "Unsupported", "ConfigError", *(name for name in used if name.isupper())}
    assert len(used) > 30 and not used - headings - known, used - headings - known


def imported_names(file, module):
    """Names that a file imports from a module."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    found = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module == module]
    return {alias.name for node in found for alias in node.names}


def test_the_guide_shows_every_name_that_a_card_may_use():
    page = (CORE.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
    for names in (
        slots.SLOTS,
        slots.OUTER_SLOTS,
        *slots.KERNELS.values(),
        [row.name for row in fields(Family)],
    ):
        assert not [name for name in names if f"| `{name}` |" not in page]
    code = next(code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "linear_rows" in code)
    values: dict = {}
    exec(code, values)
    assert [(row.slot, row.when) for row in values["ROWS"]] == [
        ("qkv.0", ""), ("qkv_bias.0", "attention_bias"), ("ln", ""), ("ln_bias", ""),
    ]  # fmt: skip
    code = next(
        code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "import ROPE_BY_WAVELENGTH" in code
    )
    exec(code, values)
    dims = Dims(head_dim=8, rope_theta=100.0, max_positions=64, rope_scaling={"rope_type": "linear", "factor": 2.0})
    assert values["DECODER"]["decoder"](dims)["rope"].frequencies[0] == 0.5


OPTIONAL = {"nn/kernels.py", "infer/executors/native.py", "infer/executors/paged_cache.py", "commands/ops.py"}
"""Where core may import the optional distribution ``llmctl_ops``."""


def imported(folder):
    """File -> first names of all that it imports, wherever in the file."""
    found = {}
    for file in sorted(folder.rglob("*.py")):
        nodes = [*ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
        found[file.relative_to(folder).as_posix()] = {name.partition(".")[0] for name in names}
    return found


def test_compiled_operators_are_imported_in_four_modules_and_import_nothing_of_core():
    assert {file for file, names in imported(CORE / "llmctl").items() if "llmctl_ops" in names} == OPTIONAL
    assert not [file for file, names in imported(CORE.parent / "plugins").items()
                if "llmctl_ops" in names and "/tests/" not in file]  # fmt: skip
    assert not [file for file, names in imported(CORE.parent / "ops" / "llmctl_ops").items() if "llmctl" in names]


DESIGN = (CORE.parent / "docs" / "design.md").read_text(encoding="utf-8")
BASES = ("", "core/llmctl", "core/llmctl/infer", "ops", "plugins/*/llmctl_*")
OF_A_RUN = {"model/"}
"""Folders in the output of a run, which the architecture page names too."""


JSON_READERS = {
    "io/json_object.py": "the reader",
    "checkpoint/formats/safetensors.py": "keys, numbers and constants as the package reads them",
    "config/file.py": "copies its own values",
    "infer/text/resumable_output.py": "copies its own values",
}


def test_json_has_one_reader_so_that_no_damage_escapes_it():
    found = {
        path.relative_to(CORE / "llmctl").as_posix()
        for path in (CORE / "llmctl").rglob("*.py")
        if re.search(r"json\.loads?\(", path.read_text(encoding="utf-8")) and "testing" not in path.parts
    }
    assert found == JSON_READERS.keys()


@pytest.mark.parametrize("paragraph", [text for text in DESIGN.split("\n\n") if "`" in text])
def test_every_file_and_folder_on_the_architecture_page_exists(paragraph):
    root = CORE.parent
    named = [
        name.replace("<family>", "*")
        for name in re.findall(r"`([\w<>./-]+(?:/|\.py|\.h|\.md))`", paragraph)
        if name not in OF_A_RUN
    ]
    # A name may be relative to a folder that the paragraph names before.
    bases, absent = [*BASES], []
    for name in named:
        found = [path for base in bases for path in root.glob(f"{base}/{name}".strip("/"))]
        if not found:
            absent.append(name)
        bases += {str(folder.relative_to(root)) for path in found for folder in (path, path.parent) if folder.is_dir()}
    assert not absent, absent


def test_the_help_of_an_option_says_whether_it_takes_a_file_or_a_folder():
    group = click.Context(cli)
    commands = [cli.get_command(group, name) for name in COMMANDS]
    every = [*commands, *(below for command in commands for below in getattr(command, "commands", {}).values())]
    vague = [
        f"{command.name} {option.opts[0]}"
        for command in every
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden and not option.metavar and option.type.name == "path"
    ]
    assert not vague
