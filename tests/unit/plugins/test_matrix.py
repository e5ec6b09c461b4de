"""The support matrix: claims and evidence joined, stale evidence shown, files kept up to date."""

import json
import shutil

import pytest

from llmctl import plugins
from llmctl.card.capabilities import METHODS
from llmctl.errors import ConfigError
from llmctl.plugins import matrix


@pytest.fixture
def llama(monkeypatch, tmp_path):
    """The family's row under the evidence given."""
    plugin = plugins.load("llama")
    evidence = json.loads((plugin.folder / matrix.EVIDENCE).read_text())["llama"]

    def row(**changes):
        return {m: matrix._cell(plugin, m, {**evidence, **changes}).label for m in matrix.COLUMNS}

    return row


def test_every_method_has_a_column():
    assert set(matrix.COLUMNS) == set(METHODS)


def test_passing_evidence_for_these_versions_makes_a_yes(llama):
    assert llama()["sft"] == llama()["convert"] == "yes"


@pytest.mark.parametrize(
    "change", [{"version": "0.0.9"}, {"core": "0.0.9"}, {"code": "0"}, {"api": "9.1"}, {"outcomes": {}}]
)
def test_stale_or_absent_evidence_is_shown(llama, change):
    assert llama(**change)["sft"] == "unverified"


def test_evidence_goes_stale_when_a_line_of_the_package_changes_and_not_otherwise(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "__init__.py").write_bytes(b"x = 1\ny = 2\n")
    (tmp_path / "a" / "deep" / "b.py").write_bytes(b"z = 3\n")
    first = matrix.code_hash(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "evidence.json").write_text("{}")
    (tmp_path / "b" / "__init__.py").write_bytes(b"x = 1\r\ny = 2\r\n")
    assert matrix.code_hash(tmp_path / "b") == first
    (tmp_path / "b" / "deep" / "b.py").rename(tmp_path / "b" / "deep" / "c.py")
    renamed = matrix.code_hash(tmp_path / "b")
    (tmp_path / "b" / "sizes.csv").write_text("layers\n2\n")
    tabled = matrix.code_hash(tmp_path / "b")
    (tmp_path / "b" / "sizes.csv").write_text("layers\n3\n")
    (tmp_path / "a" / "__init__.py").write_bytes(b"x = 1\ny = 4\n")
    assert len({first, renamed, tabled, *(matrix.code_hash(tmp_path / name) for name in "ab")}) == 5


def test_a_failed_test_is_no_evidence(llama):
    assert llama(outcomes={"sft": {"a": "passed", "b": "failed"}})["sft"] == "unverified"


def test_a_broken_plugin_has_a_row_with_its_cause(fakes):
    fakes("broken")
    broken = [cells for cells in matrix.rows().values() if cells["sft"].label == "broken"]
    assert broken and "cannot be loaded" in broken[0]["sft"].note


def test_a_file_is_updated_and_then_passes_the_check(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(f"before\n{matrix.BEGIN}\nold\n{matrix.END}\nafter\n")
    with pytest.raises(ConfigError, match="is stale; run: llmctl models --update"):
        matrix.check(file)
    matrix.update(file)
    matrix.check(file)
    assert file.read_text().startswith("before\n") and file.read_text().endswith("\nafter\n")
    file.write_text("no markers")
    with pytest.raises(ConfigError, match="has no markers for the matrix"):
        matrix.check(file)
