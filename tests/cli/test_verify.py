"""``llmctl verify``: models, checkpoints, runs, packed and exported models against their stored checksums."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import llmctl
from llmctl.cli import cli
from llmctl.errors import CheckpointError, FileError
from llmctl.io.checksums import write_manifest

STARTER = Path(llmctl.__file__).resolve().parents[2] / "plugins" / "llama" / "llmctl_llama" / "starter" / "model"


def verify(*folders):
    done = CliRunner().invoke(cli, ["verify", *map(str, folders)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 64
    file.write_bytes(content)


@pytest.fixture
def run_folder(tmp_path):
    """The output folder of a run, with two checkpoints and a final model."""
    folder = tmp_path / "run"
    for part in ("checkpoints/step-000001", "checkpoints/step-000002", "model"):
        shutil.copytree(STARTER, folder / part)
        write_manifest(folder / part)
    (folder / "run.json").write_text("{}")
    return folder


def test_every_part_of_a_run_is_checked(run_folder):
    lines = verify(run_folder).splitlines()
    assert lines == [
        f"{run_folder / part}: ok" for part in ("model", "checkpoints/step-000001", "checkpoints/step-000002")
    ]


def test_all_damaged_files_of_a_run_are_named(run_folder):
    flip(run_folder / "checkpoints" / "step-000002" / "model.safetensors")
    (run_folder / "model" / "config.json").unlink()
    with pytest.raises(FileError) as caught:
        verify(run_folder)
    message = str(caught.value)
    assert "model: config.json is missing" in message and "step-000001" not in message
    assert "step-000002: the content of model.safetensors is not what was written" in message


def test_converted_and_packed_models_are_checked(tmp_path):
    for arguments in (
        ["convert", str(STARTER), str(tmp_path / "native")],
        ["export", str(STARTER), "--engine", "fused", "--weights", "int8", "--output", str(tmp_path / "packed")],
    ):
        assert CliRunner().invoke(cli, ["--model", "llama", *arguments]).exit_code == 0
    assert verify(tmp_path / "native", tmp_path / "packed").count(": ok") == 2
    flip(tmp_path / "packed" / "weights.packed")
    with pytest.raises(CheckpointError, match="weights.packed is damaged"):
        verify(tmp_path / "packed")


def test_a_folder_without_checksums_is_refused(tmp_path):
    with pytest.raises(FileError, match="has no manifest.json with checksums"):
        verify(STARTER)
    with pytest.raises(FileError, match="none does not exist"):
        verify(tmp_path / "none")
    with pytest.raises(FileError, match="is a file; give the folder"):
        verify(STARTER / "config.json")
