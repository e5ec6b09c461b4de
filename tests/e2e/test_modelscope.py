"""Models by name from ModelScope, by its own package, which `make test` does not install; the server is on the loopback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kit.model_cli import STARTER
from kit.modelscope_server import serving

pytest.importorskip("modelscope")
NAME = "Qwen/tiny"
READ = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def hub():
    files = {path.name: path.read_bytes() for path in STARTER.iterdir()} | {"model.gguf": b"x", "README.md": b"x"}
    with serving(NAME, files) as server:
        yield server


@pytest.fixture
def find(hub, tmp_path):
    """Exit code, standard output and error of a process that looks for a model."""

    def run(name, **more):
        code = f"from llmctl.hub.find import model_folder; print(model_folder({name!r}))"
        environment = {**os.environ, "MODELSCOPE_ENDPOINT": hub.url, "MODELSCOPE_CACHE": str(tmp_path / "cache"),
                       "HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", **more}  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
        )
        return done.returncode, done.stdout.strip(), done.stderr

    return run


def test_what_is_read_is_downloaded_once_and_used_offline(hub, find):
    code, folder, said = find(f"modelscope:{NAME}")
    assert code == 0 and f"downloading {NAME} from ModelScope: 5 files, 1.8 MB" in said and "%|" not in said, said
    assert {path.name for path in Path(folder).iterdir() if not path.name.startswith(".")} == READ
    assert {name for name, _ in hub.got} == READ
    hub.got.clear()
    assert find(f"modelscope:{NAME}")[:2] == (0, folder)
    assert find(f"modelscope:{NAME}", HF_HUB_OFFLINE="1") == (0, folder, "")
    assert hub.got == []


def test_a_file_that_has_changed_is_downloaded_again(hub, find):
    folder = Path(find(f"modelscope:{NAME}")[1])
    hub.files["config.json"] = hub.files["config.json"].replace(b"{", b"{ ", 1)
    find(f"modelscope:{NAME}")
    assert (folder / "config.json").read_bytes() == hub.files["config.json"]


def test_a_broken_connection_is_resumed_where_it_broke_off(hub, find):
    hub.cut["model.safetensors"] = 1_300_000
    folder = Path(find(f"modelscope:{NAME}")[1])
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert ("model.safetensors", "bytes=1300000-") in hub.got


def test_what_cannot_be_downloaded_is_an_error_that_says_what_to_do(find):
    assert "Refused: ModelScope has no model Qwen/none that you may read" in find("modelscope:Qwen/none")[2]
    code, _, said = find("modelscope:Qwen/none", MODELSCOPE_ENDPOINT="http://127.0.0.1:9")
    assert (
        code == 1
        and "run: modelscope download --model Qwen/none --local_dir none; then copy the folder none here" in said
    )
