"""Folders that a command may write: new ones, empty ones, and with --overwrite those that hold what it writes."""

import pytest

from llmctl.errors import ConfigError
from llmctl.io.target import check_target, has_folders


def check(folder, overwrite=False):
    check_target(folder, overwrite, f"--output {folder.name}", "a toy", lambda there: (there / "toy").is_file())


def test_new_and_empty_folders_and_toys_to_replace_are_allowed(tmp_path):
    check(tmp_path / "new")
    check(tmp_path)
    (tmp_path / "toy").touch()
    check(tmp_path, overwrite=True)


def test_nothing_else_is_replaced(tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    folder.mkdir()
    (folder / "letters").mkdir()
    for path in (file, folder):
        with pytest.raises(ConfigError, match=f"^--output {path.name} already exists; choose another folder, or add"):
            check(path)
    with pytest.raises(ConfigError, match="^--output file is a file; name a folder$"):
        check(file, overwrite=True)
    with pytest.raises(
        ConfigError, match="^--output folder holds other things than a toy, and --overwrite would delete"
    ):
        check(folder, overwrite=True)


def test_folders_in_a_folder_are_seen(tmp_path):
    (tmp_path / "file").touch()
    assert not has_folders(tmp_path)
    (tmp_path / "folder").mkdir()
    assert has_folders(tmp_path)
