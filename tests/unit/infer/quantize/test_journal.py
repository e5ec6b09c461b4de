"""The journal of a run that was killed while it wrote a file."""

import os

import pytest

from llmctl.infer.quantize.journal import open_journal
from llmctl.io import atomic


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_begins_anew_over_what_was_being_written(resume, tmp_path):
    folder = tmp_path / ".out.quantizing"
    with pytest.raises(KeyboardInterrupt), open_journal(tmp_path / "out", {"seed": 1}, False):
        raise KeyboardInterrupt
    _, lock = atomic.locked_folder(folder, atomic.temporary_prefix(folder / "layer-00001.npz"))
    os.close(lock)
    with open_journal(tmp_path / "out", {"seed": 2}, resume) as journal:
        assert journal.get(0) is None
        assert [path.name for path in folder.iterdir()] == ["journal.json"]
    assert list(tmp_path.iterdir()) == []
