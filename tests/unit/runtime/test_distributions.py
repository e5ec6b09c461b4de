"""Damaged metadata of one distribution leaves the others, and every command, as they are."""

import sys

import pytest

from llmctl import plugins


@pytest.fixture(params=["garbage", "without a value", "metadata"])
def damaged(request, tmp_path, monkeypatch):
    info = tmp_path / "fake_x-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-x\nVersion: 1.0\n")
    content = {"garbage": b"\xff\xfegarbage", "without a value": b"[llmctl.family.v0]\nxfam\n"}
    (info / "entry_points.txt").write_bytes(content.get(request.param, b"[llmctl.family.v0]\nxfam = fake_x\n"))
    if request.param == "metadata":
        (info / "METADATA").write_bytes(b"\xff\xfe\x00")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def test_families_are_listed_and_the_distribution_is_named(damaged, recwarn):
    names = {found.name for found in plugins.installed()}
    assert "llama" in names
    told = [str(w.message) for w in recwarn if "fake_x-1.0.dist-info is damaged and is skipped" in str(w.message)]
    assert told or "xfam" in names


def test_help_works(damaged, run_llmctl):
    done = run_llmctl("--help", fakes=[str(damaged)])
    assert done.returncode == 0 and "Commands:" in done.stdout and "Traceback" not in done.stderr
