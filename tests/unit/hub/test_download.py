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
            (folder / file).parent.mkdir(exist_ok=True)
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
    "names", [["model.h5", "README.md"], ["config.json", "model.h5"], ["generation_config.json"], ["mmproj.gguf"]]
)
def test_what_is_not_read_is_named(tmp_path, names):
    with pytest.raises(CheckpointError, match="holds no model that llmctl reads: it needs config.json and"):
        download(Toy(tmp_path, names), NAME)


GGUF = ["README.md", "config.json", "m-Q4_K_M.gguf", "F16/m-F16-00001-of-00002.gguf", "F16/m-F16-00002-of-00002.gguf", "mmproj-F16.gguf"]  # fmt: skip


def named(choice, revision=""):
    return HubName("hf", "owner/name", revision, choice)


def test_of_models_in_gguf_the_chosen_one_is_fetched_alone(tmp_path):
    hub = Toy(tmp_path, GGUF)
    assert download(hub, named("q4_k_m")) == tmp_path / COMMIT / "m-Q4_K_M.gguf" and hub.fetched == ["m-Q4_K_M.gguf"]
    hub.fetched.clear()
    assert download(hub, named("F16"), weights=False).name == "m-F16-00001-of-00002.gguf" and hub.fetched == GGUF[3:5]
    hub.offline = True
    for choice in ("F16", GGUF[4]):
        assert download(hub, named(choice)) == tmp_path / COMMIT / GGUF[3]


def test_the_only_model_in_gguf_needs_no_name(tmp_path):
    hub = Toy(tmp_path, ["config.json", "m.gguf"])
    assert download(hub, NAME).name == "m.gguf" and hub.fetched == ["m.gguf"]


def test_weights_in_other_formats_go_before_gguf_that_is_not_named(tmp_path):
    hub = Toy(tmp_path, [*WHOLE, "m-Q8_0.gguf"])
    assert download(hub, NAME) == tmp_path / COMMIT and "m-Q8_0.gguf" not in hub.fetched
    assert download(hub, named("Q8_0")).name == "m-Q8_0.gguf"


@pytest.mark.parametrize(
    ("names", "choice", "message"),
    [
        (GGUF, "", "owner/name on the Toy Hub holds 2 models in GGUF:\n  m-Q4_K_M.gguf (10 B)\n  F16/m-F16-00001-of-00002.gguf (20 B, 2 parts)\n"
         "Name one: owner/name:Q4_K_M, or its file: owner/name:m-Q4_K_M.gguf"),
        (GGUF, "Q8_0", "holds no model Q8_0 in GGUF, but:\n  m-Q4_K_M.gguf"),
        (WHOLE, "Q8_0", "has no GGUF file, so :Q8_0 cannot choose one; leave out :Q8_0"),
        (GGUF[:4], "F16", "00001-of-00002.gguf names files that are missing, 1 in all: F16/m-F16-00002-of-00002.gguf"),
    ],
)  # fmt: skip
def test_models_in_gguf_that_are_not_one_are_listed(tmp_path, names, choice, message):
    hub = Toy(tmp_path, names)
    with pytest.raises(CheckpointError) as raised:
        download(hub, named(choice))
    assert message in str(raised.value) and not hub.fetched


def test_without_a_connection_the_models_that_are_here_are_listed_or_how_to_get_another(tmp_path):
    hub = Toy(tmp_path, GGUF)
    download(hub, named("F16"))
    hub.offline = True
    assert download(hub, NAME).name == "m-F16-00001-of-00002.gguf"
    with pytest.raises(Unreachable, match="owner/name:Q4_K_M is neither a folder here nor complete"):
        download(hub, named("Q4_K_M"))
    hub.offline = False
    download(hub, named("Q4_K_M"))
    hub.offline = True
    with pytest.raises(CheckpointError, match="holds 2 models in GGUF"):
        download(hub, NAME)


def test_shards_that_the_repository_lacks_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="names files that are missing, 1 in all: two"):
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
    with pytest.raises(
        MissingDependencyError, match=r"^there is no folder a/b, and .*pip install 'paddle-llmctl\[hub\]'"
    ):
        model_folder("a/b")
    with pytest.raises(MissingDependencyError, match=r"^downloading from ModelScope .*'paddle-llmctl\[modelscope\]'"):
        model_folder("modelscope:a/b")
