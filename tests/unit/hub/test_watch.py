import time

import pytest

from llmctl.hub import watch
from llmctl.io import progress


@pytest.fixture
def quick(monkeypatch):
    """Looks and words without waiting."""
    monkeypatch.setattr(watch, "INTERVAL", 0.001)
    for name in ("PATIENCE", "REDRAW", "LINE"):
        monkeypatch.setattr(progress, name, 0.0)


def said(capsys, text):
    """Waits for a line on standard error."""
    found, end = "", time.monotonic() + 20
    while text not in found and time.monotonic() < end:
        found += capsys.readouterr().err
    assert text in found
    return found


def test_what_arrives_is_shown_as_a_share_of_what_is_missing(tmp_path, capsys, quick):
    (tmp_path / "there").write_bytes(b"x" * 500)
    (tmp_path / "part.incomplete").write_bytes(b"x" * 20)
    with watch.watched("downloading it", 200, tmp_path / "."):
        assert "downloading it: 10%" in said(capsys, "10%")
        (tmp_path / "part.incomplete").write_bytes(b"x" * 100)
        said(capsys, "downloading it: 50%")
        (tmp_path / "part.incomplete").rename(tmp_path / "whole")
        (tmp_path / "link").symlink_to(tmp_path / "there")
        (tmp_path / "last").write_bytes(b"x" * 100)
        said(capsys, "downloading it: 100%")


def test_a_folder_that_is_not_there_yet_is_empty(tmp_path):
    assert watch.size(tmp_path / "none") == 0
