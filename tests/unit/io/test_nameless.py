"""Files without a name."""

import os

import pytest

from llmctl.io.nameless import nameless_file


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_file_has_its_content_and_no_name(in_memory, tmp_path, monkeypatch):
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with nameless_file(b"content") as file:
        assert not list(tmp_path.iterdir())
        assert file.read() == b"content" and os.pread(file.fileno(), 99, 3) == b"tent"
