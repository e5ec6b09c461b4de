"""Every command that README and the first steps show works as shown, in the order of the pages."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kit.readme import ROOT, STARTER, shown

PAGES = ("README.md", "docs/first-steps.md")
BY_CI = {"make demo", "make test", ". .venv/bin/activate"}
"""Run by .ci/run, which calls make as a new user does."""
BY_PACKAGING = ("make wheels", "pip install ")
"""tests/packaging builds the wheels and installs them; a package index is not within reach of tests."""


def test_ci_runs_the_make_targets_that_are_shown():
    targets = {line.removeprefix("make ") for page in PAGES for line in shown(page) if line.startswith("make ")}
    assert {target.partition(" ")[0] for target in targets} == {"demo", "test", "wheels"}
    targets = {"demo", "test"}
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for target in targets:
        assert re.search(rf"make\b.*\b{target}\b", script), target


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """What the pages speak of: a demo run, a model, data and my.yaml."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(STARTER / "model", folder / "path" / "to" / "model")
    (folder / "my-data").mkdir()
    for name in ("train", "dev"):
        lines = (STARTER / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:16]
        (folder / "my-data" / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        shutil.copy(folder / "my-data" / f"{name}.jsonl", folder / f"{name}.jsonl")
    bundled = folder / STARTER.relative_to(ROOT) / "data"
    bundled.mkdir(parents=True)
    shutil.copy(folder / "my-data" / "train.jsonl", bundled)
    (folder / "questions.jsonl").write_text("\n".join(lines[:3]) + "\n", encoding="utf-8")
    text = (ROOT / "docs" / "first-steps.md").read_text(encoding="utf-8")
    (folder / "my.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1], encoding="utf-8")
    quick = ["--set", "train.max_steps=2", "--set", "output.samples=0", "--set", "data.dev=dev.jsonl"]
    run(["--model", "llama", "finetune", "--output", "runs/demo", *quick], folder)
    return folder


def run(arguments: list[str], folder: Path, stdin: str = "") -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "llmctl", *arguments], cwd=folder, capture_output=True, text=True, input=stdin,
        timeout=300, check=False, env={**os.environ, "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"llmctl {shlex.join(arguments)}\n{done.stdout}{done.stderr}"
    return done


def test_every_shown_command_works(workplace):
    commands = [line for page in PAGES for line in shown(page) if line not in BY_CI]
    commands = [line for line in commands if not line.startswith(BY_PACKAGING)]
    assert len(commands) >= 6
    for line in commands:
        words = shlex.split(line)
        assert words[0] == "llmctl", line
        done = run(words[1:], workplace, stdin="Who lives here?\n/quit\n" if {"--chat", "chat"} & {*words} else "")
        assert done.stdout.strip(), line
    assert (workplace / "runs" / "mine" / "model" / "config.json").is_file()


def test_the_shown_installations_name_folders_and_extras_that_exist():
    section = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    extras = re.findall(r"^([\w-]+) = \[", section.partition("\n[")[0], re.MULTILINE)
    lines = [shlex.split(line, comments=True) for line in shown("README.md") if line.startswith("pip install ")]
    targets = [word for words in lines for word in words[2:] if not word.startswith("-") and word != "dist"]
    assert len(lines) == 3 and len(targets) == 7
    for target in targets:
        name, _, given = target.partition("[")
        assert name == "paddle-llmctl" or (ROOT / name / "pyproject.toml").is_file(), target
        assert set(given.rstrip("]").split(",")) - {""} <= set(extras), target
    assert re.search(r"^wheels:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_shown_data_lines_are_valid():
    from llmctl.data.sft.examples import ExampleReader

    text = (ROOT / "docs" / "first-steps.md").read_text(encoding="utf-8")
    lines = re.search(r"```json\n(.*?)```", text, re.DOTALL)[1].splitlines()
    assert [len(ExampleReader()(line, "page").conversation.turns) for line in lines] == [1, 2]


def test_generated_pages_are_up_to_date():
    done = subprocess.run([sys.executable, ROOT / "tools" / "make_docs.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + "run: python tools/make_docs.py"


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_print_config_is_a_valid_configuration(tmp_path):
    from llmctl.config import file, finetune, schema

    for family, path in (("llama", "plugin:"), ("opt", "")):
        done = run(["--model", family, "finetune", "--print-config"], tmp_path)
        (tmp_path / "printed.yaml").write_text(done.stdout, encoding="utf-8")
        made = schema.build(finetune.FinetuneConfig, file.read_file(tmp_path / "printed.yaml"))
        assert made.model.path.startswith(path) and json.dumps(schema.to_dict(made)) and "[]" not in done.stdout
        fields = {row.split(".")[1] for row, *_ in schema.describe(finetune.FinetuneConfig)}
        assert fields <= set(re.findall(r"^  (?:# )?(\w+):", done.stdout, re.MULTILINE))
