"""All Python that docs/python.md shows runs as shown, in order, in one process."""

import inspect
import re
from pathlib import Path

import pytest
from kit.pages import lay_out
from kit.readme import ROOT

import llmctl
from llmctl.testing.tiny import write_adapter

PAGE = ROOT / "docs" / "python.md"


def code_of(section):
    """The section's blocks of Python, in order."""
    page = PAGE.read_text(encoding="utf-8")
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)[1]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_out(8)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_generating_works_as_shown(capsys):
    Path("adapters").mkdir()
    for seed, name in enumerate(("formal", "short")):
        write_adapter(Path("adapters") / name, Path("path/to/model"), seed)
    values: dict = {}
    blocks = code_of("Generate from Python")
    assert len(blocks) >= 7
    for block in blocks:
        exec(block, values)
    assert len(values["answers"]) == 3 and all(answer.text for answer in values["answers"])
    assert values["first"].usage.completion_tokens and values["likely"].total > values["unlikely"].total
    assert {values[name].finish_reason for name in ("plain", "formal", "short")} <= {"end", "length"}
    assert "kv has no effect with engine='dynamic'" in capsys.readouterr().out


@pytest.mark.usefixtures("folder")
def test_training_works_as_shown(capsys):
    values: dict = {}
    blocks = code_of("Train from Python")
    assert len(blocks) >= 5
    for block in blocks:
        exec(block, values)
    assert len(values["losses"]) == 4 and len(values["evaluations"]) == 2
    assert values["stopped"].info["steps"] == 2 and not values["layer"].training
    assert (Path("runs/adapter/model") / "adapter_model.safetensors").is_file()
    assert "did you mean train.learning_rate?" in capsys.readouterr().out


def test_the_page_lists_every_event_and_its_arguments():
    page = PAGE.read_text(encoding="utf-8")
    for name, method in vars(llmctl.Callback).items():
        if name.startswith("on_"):
            given = ", ".join(list(inspect.signature(method).parameters)[1:])
            assert f"| `{name}({given})` |" in page
