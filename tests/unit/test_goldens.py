"""Goldens: every family has recordings of its original code, small and without near ties, and a mistake fails them."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmctl.testing import FamilyConformance
from llmctl.testing.golden import check_golden

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path.parent for path in ROOT.glob("plugins/*/tests/goldens/*/golden.npz"))


def module(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def named():
    """Family -> the folders that its conformance class names."""
    found = {}
    for file in sorted(ROOT.glob("plugins/*/tests/test_*_conformance.py")):
        for value in vars(module(file)).values():
            if isinstance(value, type) and issubclass(value, FamilyConformance) and value.family:
                found.setdefault(value.family, set()).update(file.parent / golden for golden in value.goldens)
    return found


@pytest.fixture(scope="module")
def tool():
    """tools/goldens/make_golden.py, which imports torch only when it records."""
    sys.path.insert(0, str(ROOT / "tools" / "goldens"))
    try:
        yield module(ROOT / "tools" / "goldens" / "make_golden.py")
    finally:
        sys.path.remove(str(ROOT / "tools" / "goldens"))


def test_every_family_is_compared_with_its_original(named, tool):
    assert {family for family, folders in named.items() if not folders} == set()
    table = {case.name: case.family for case in tool.CASES}
    assert {folder.name: family for family, folders in named.items() for folder in folders} == table
    assert set().union(*named.values()) == set(FOLDERS)


def test_goldens_are_small():
    sizes = {folder.name: sum(file.stat().st_size for file in folder.iterdir()) for folder in FOLDERS}
    assert max(sizes.values()) < 100_000 and sum(sizes.values()) < 2_000_000


def test_no_recorded_token_is_a_near_tie(tool):
    for folder in FOLDERS:
        case = json.loads((folder / "case.json").read_text())
        assert case["greedy_min_margin"] > 0.01 and case.get("router_min_margin", 1) > 0.001, folder.name


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mixtral/tests/goldens/mistral_window", {"sliding_window": None}, "mistral_window: logits of a single row"),
        ("mixtral/tests/goldens/mixtral_aux", {"router_aux_loss_coef": 0.2}, "mixtral_aux: loss: off by"),
        ("gpt3/tests/goldens/gpt2_scaled", {"scale_attn_by_inverse_layer_idx": False}, "gpt2_scaled: logits"),
    ],
)
def test_a_model_that_computes_something_else_fails(tmp_path, name, change, message):
    folder = shutil.copytree(ROOT / "plugins" / name, tmp_path / Path(name).name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(AssertionError, match=message):
        check_golden(folder)


def test_a_family_without_goldens_is_skipped_with_a_reason(request):
    class TestNothing(FamilyConformance):
        family = "nothing"

    with pytest.raises(pytest.skip.Exception, match="nothing has no goldens"):
        TestNothing().test_recordings_of_the_original_code_are_repeated(request)


def test_a_golden_that_is_not_there_or_not_whole_is_named(tmp_path):
    with pytest.raises(
        AssertionError, match=r"there is no file .*/bloon/golden\.npz; goldens in .*: bloom, bloom_six_heads"
    ):
        check_golden(ROOT / "plugins/bloom/tests/goldens/bloon")
    folder = shutil.copytree(ROOT / "plugins/bloom/tests/goldens/bloom", tmp_path / "bloom")
    arrays = dict(np.load(folder / "golden.npz"))
    np.savez(folder / "golden.npz", **{name: arrays[name] for name in arrays.keys() - {"labels", "attention_mask"}})
    with pytest.raises(AssertionError, match="lacks attention_mask, labels; see docs/goldens"):
        check_golden(folder)


def test_a_case_belongs_to_a_plugin_here(tool):
    assert {tool.folder_of(case) for case in tool.CASES} == set(FOLDERS)


def test_the_shipped_recorder_takes_a_file_of_cases(tmp_path, monkeypatch):
    from llmctl.testing import record

    file = tmp_path / "cases.py"
    with pytest.raises(SystemExit, match=r"cases\.py does not exist; it must be a Python file with CASES"):
        record.cases_of(file)
    file.write_text("CASES = ()")
    with pytest.raises(SystemExit, match="has no CASES"):
        record.cases_of(file)
    page = (ROOT / "docs" / "goldens.md").read_text(encoding="utf-8")
    file.write_text(next(code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "CASES" in code))
    assert [(case.name, case.family) for case in record.cases_of(file, "window")] == [("window", "starcoder2")]
    line = re.search(r"^python -m llmctl\.testing\.record cases\.py (.*)$", page, re.MULTILINE)[1]
    recorded = []
    monkeypatch.setattr(record, "report", lambda *given: recorded.append(given))
    record.main([str(file), *shlex.split(line)])
    assert recorded == [(record.cases_of(file)[0], Path("tests/goldens/window"), None)]
    with pytest.raises(SystemExit, match="has no case 'widow'; it has window"):
        record.cases_of(file, "widow")


def test_documented_commands_name_cases_that_exist(tool):
    page = (ROOT / "docs" / "goldens.md").read_text(encoding="utf-8")
    lines = re.findall(r"^python tools/goldens/make_golden\.py (.*)$", page, re.MULTILINE)
    assert len(lines) >= 4
    assert all(tool.chosen(tool.parse(shlex.split(line))) for line in lines)


def test_a_folder_without_the_modeling_file_is_refused(tmp_path):
    command = [
        sys.executable,
        ROOT / "tools" / "goldens" / "make_golden.py",
        "qwen",
        "--code",
        tmp_path,
        "--out",
        tmp_path,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and "must name a folder with modeling_qwen.py" in done.stderr
    assert "Traceback" not in done.stderr
