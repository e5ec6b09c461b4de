"""Small files of foreign model folders: copied, unless they are links to somewhere else."""

import errno
import shutil

import pytest

from llmctl.io.copying import copy_content, copy_into


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def test_files_and_links_within_the_folder_are_copied(tmp_path, target):
    model = tmp_path / "model"
    model.mkdir()
    (model / "a.json").write_text("content")
    (model / "b.json").symlink_to("a.json")
    assert copy_into(model / "a.json", target) and copy_into(model / "b.json", target)
    assert (target / "b.json").read_text() == "content" and not (target / "b.json").is_symlink()


def test_links_into_the_blobs_of_a_hub_cache_are_copied(tmp_path, target):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "f00").write_text("content")
    (snapshot / "config.json").symlink_to("../../blobs/f00")
    assert copy_into(snapshot / "config.json", target) and (target / "config.json").read_text() == "content"


@pytest.mark.parametrize("way", ["absolute", "relative", "folder"])
def test_links_to_other_places_are_left_out_with_a_warning(tmp_path, target, way):
    (tmp_path / "secret").write_text("secret")
    model = tmp_path / "model"
    model.mkdir()
    if way == "folder":
        (model / "sub").symlink_to(tmp_path)
        (model / "LICENSE").symlink_to("sub/secret")
    else:
        (model / "LICENSE").symlink_to(tmp_path / "secret" if way == "absolute" else "../secret")
    with pytest.warns(UserWarning, match="LICENSE is a link to a file outside of its folder and is left out"):
        assert not copy_into(model / "LICENSE", target)
    assert not list(target.iterdir())


def test_a_folder_is_copied_with_its_folders_until_the_first_error(tmp_path, target, monkeypatch):
    source = tmp_path / "source"
    (source / "b").mkdir(parents=True)
    (source / "a").write_text("one")
    (source / "b" / "c").write_text("two")
    copy_content(source, target)
    assert (target / "a").read_text() == "one" and (target / "b" / "c").read_text() == "two"

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left") as raised:
        copy_content(source, tmp_path / "target")
    assert raised.value.errno == errno.ENOSPC
