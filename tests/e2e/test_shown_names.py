"""Every command, option and key that a page names exists, and every command in a block is run by a test."""

import ast
import importlib
import re

import pytest
from kit.readme import ROOT, shown
from kit.shown_options import unknown_in_command, wrong_config, wrong_key

PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (*sorted(ROOT.glob("*.md")), ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if path.name != "CHANGELOG.md"
]
"""All but the change log, which also names what was there once."""

NOT_RUN = {
    "CONTRIBUTING.md": "they are what runs the tests",
    "docs/goldens.md": "recording needs torch and the authors' code; tests compare with what was recorded",
}
"""Page -> why the commands in its shell blocks are not run by a test."""


def text(page):
    return (ROOT / page).read_text(encoding="utf-8")


def in_backticks(page):
    return re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```$", "", text(page), flags=re.MULTILINE | re.DOTALL))


TESTS = [*sorted((ROOT / "tests").rglob("test_*.py")), *sorted((ROOT / "ops" / "tests").glob("test_*.py"))]

# The blocks of a translation are those of the English page: test_translations.py.
WITH_COMMANDS = [page for page in PAGES if "```sh\n" in text(page) and "zh" not in page]


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_the_commands_of_a_page_are_run_by_a_test_or_listed_with_a_reason(page):
    if page in NOT_RUN:
        return
    name = page.rpartition("/")[2]
    naming = [test for test in TESTS if re.search(rf'"(docs/)?{re.escape(name)}"', test.read_text(encoding="utf-8"))]
    running = [test for test in naming if re.search(r"\b(shown|follow)\(", test.read_text(encoding="utf-8"))]
    assert running, f"no test runs the commands of {page}, by shown() or follow() of tests/kit"


def test_pages_that_are_not_run_show_commands():
    assert set(NOT_RUN) <= set(WITH_COMMANDS)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_that_a_page_names_exists(page):
    blocks = [line for line in shown(page) if line.startswith("llmctl ")]
    for line in [*blocks, *(code for code in in_backticks(page) if code.startswith("llmctl "))]:
        assert not unknown_in_command(line), f"{page}: {line}: unknown {unknown_in_command(line)}"


@pytest.mark.parametrize("page", PAGES)
def test_every_key_that_a_page_names_exists_and_takes_the_value_that_it_shows(page):
    wrong = {code: wrong_key(code) for code in in_backticks(page) if wrong_key(code)}
    assert not wrong, f"{page}: {wrong}"


def blocks(page, language):
    """The page's blocks that are written by hand, without the indentation that they have in lists."""
    written = re.sub(r"<!-- generated: \w+ -->.*?<!-- end -->", "", text(page), flags=re.DOTALL)
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", written, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) for indent, body in found]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")])
def test_every_configuration_that_a_page_shows_is_valid(page):
    for body in blocks(page, "yaml"):
        assert not wrong_config(body), f"{page}: {wrong_config(body)}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_every_import_that_a_page_shows_exists(page):
    nodes = [node for body in blocks(page, "python") for node in ast.walk(ast.parse(body))]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module.startswith("llmctl"):
            module = importlib.import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{page}: {node.module} has no {missing}"


def test_what_is_not_there_is_found():
    assert unknown_in_command("llmctl finetun x") == ["finetun"]
    assert unknown_in_command("llmctl --model llama finetune x --set a.b=c --lr 3") == ["--lr"]
    assert unknown_in_command("llmctl data build x --output y --nothing") == ["--nothing"]
    assert not unknown_in_command("llmctl generate x --prompt --chat - # --nothing")
    assert "no configuration" in wrong_key("train.lr") and "no configuration" in wrong_key("data.lr: 3")
    assert wrong_config("train: {lr: 1}") and not wrong_config("dpo: {beta: 0.2}")
    assert wrong_key("train.schedule: none") and wrong_key("data.packing=best")
    assert not any(map(wrong_key, ("train.schedule: cosine", "train.jsonl", "train.epochs=2", "data.train", "a.b")))


def test_the_shown_check_of_a_gpu_works(run_llmctl):
    for line in shown("docs/gpu.md"):
        done = run_llmctl(*line.split()[1:])
        assert done.returncode == 0 and "paddle" in done.stdout
