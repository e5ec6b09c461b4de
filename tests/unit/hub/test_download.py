import errno
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from llmctl.errors import CheckpointError, FileError, MissingDependencyError
from llmctl.hub.client import Listing, Refused, Unreachable
from llmctl.hub.download import download
from llmctl.hub.find import model_folder
from llmctl.hub.hugging_face import HuggingFace
from llmctl.hub.name import HubName
from llmctl.io.progress import silent

NAME = HubName("hf", "owner/name")
COMMIT = "0123456789" * 4


class Toy:
    """A hub in a folder."""

    title = "the Toy Hub"
    cache_variable = "TOY_HOME"

    def __init__(self, folder, names, commit=COMMIT):
        self.cache, self.names, self.commit = folder, list(names), commit
        self.offline, self.refusal, self.fetched = False, None, []

    def listing(self, name):
        if self.offline or self.refusal:
            raise self.refusal or Unreachable("it is off")
        return Listing(self.commit, dict.fromkeys(self.names, 10))

    def fetch(self, name, files):
        folder = self._folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            (folder / file).write_text('{"weight_map": {"a": "one", "b": "two"}}')
        self.fetched += files
        return folder

    def store(self, name):
        return self.cache

    def cached(self, name):
        return self._folder(name) if self._folder(name).is_dir() else None

    def elsewhere(self, name, folder):
        return f"toy get {name} {folder}"

    def _folder(self, name) -> Path:
        return self.cache / self.commit


SHARDED = ["config.json", "model.safetensors.index.json", "one", "two", "README.md"]
WHOLE = ["config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin"]


def test_only_what_is_read_is_fetched_and_only_once(tmp_path, capsys):
    hub = Toy(tmp_path, WHOLE)
    folder = download(hub, NAME)
    assert sorted(hub.fetched) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert "downloading owner/name at 012345678901 from the Toy Hub: 3 files, 30 B" in capsys.readouterr().err
    hub.fetched.clear()
    assert download(hub, NAME) == folder and not hub.fetched
    assert capsys.readouterr().err == ""


def test_quiet_programs_hear_nothing(tmp_path, capsys):
    with silent():
        download(Toy(tmp_path, WHOLE), NAME)
    assert capsys.readouterr().err == ""


def test_shards_are_those_of_the_index(tmp_path):
    hub = Toy(tmp_path, SHARDED)
    download(hub, NAME)
    assert set(hub.fetched) == set(SHARDED) - {"README.md"}


def test_weights_are_left_out_on_demand(tmp_path):
    hub = Toy(tmp_path, WHOLE)
    download(hub, NAME, weights=False)
    assert hub.fetched == ["config.json", "tokenizer.json"]


def test_a_complete_copy_is_used_offline_and_an_incomplete_one_is_not(tmp_path):
    hub = Toy(tmp_path, SHARDED)
    folder = download(hub, NAME)
    hub.offline = True
    assert download(hub, NAME) == folder
    (folder / "two").unlink()
    with pytest.raises(
        Unreachable, match="run: toy get owner/name name; then copy the folder name here and give its path"
    ):
        download(hub, NAME)


def test_a_copy_is_used_with_a_warning_where_the_hub_cannot_be_asked_or_refuses(tmp_path):
    hub = Toy(tmp_path, WHOLE)
    folder = download(hub, NAME)
    for hub.refusal in (Unreachable("it is down"), Refused("it is gated")):
        with pytest.warns(UserWarning, match="it is .*. The copy of owner/name in .* is used"):
            assert download(hub, NAME) == folder
    shutil.rmtree(folder)
    with pytest.raises(Refused, match="^it is gated$"):
        download(hub, NAME)


def test_a_commit_that_is_here_asks_no_server(tmp_path):
    hub = Toy(tmp_path, WHOLE)
    folder = download(hub, NAME)
    hub.refusal = AssertionError("asked")
    assert download(hub, HubName("hf", "owner/name", COMMIT)) == folder


@pytest.mark.parametrize(
    "names", [["model.gguf", "README.md"], ["config.json", "model.gguf"], ["generation_config.json"]]
)
def test_what_is_not_read_is_named(tmp_path, names):
    with pytest.raises(CheckpointError, match="holds no model that llmctl reads: it needs config.json and"):
        download(Toy(tmp_path, names), NAME)


def test_shards_that_the_repository_lacks_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="names 1 files that are missing: two"):
        download(Toy(tmp_path, ["config.json", "model.safetensors.index.json", "one"]), NAME)


def test_a_disk_without_room_is_named_before_the_download(tmp_path, monkeypatch):
    hub = Toy(tmp_path, WHOLE)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 20))
    with pytest.raises(FileError, match="needs 30 B in .*, where 20 B are free; free some, or set TOY_HOME to a"):
        download(hub, NAME)
    assert not hub.fetched


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_is_named(number):
    client = HuggingFace("a test")
    with pytest.raises(
        FileError, match="no space left in .*; free some, or set HF_HOME to .* What has been downloaded is kept"
    ):
        with client._explained(NAME):
            try:
                raise OSError(number, "full")
            except OSError as error:
                raise RuntimeError("the library's") from error


def test_a_package_that_is_absent_is_named_with_what_installs_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(MissingDependencyError, match=r"^a/b is no folder here, .*pip install 'paddle-llmctl\[hub\]'"):
        model_folder("a/b")
    with pytest.raises(MissingDependencyError, match=r"^downloading from ModelScope .*'paddle-llmctl\[modelscope\]'"):
        model_folder("modelscope:a/b")
