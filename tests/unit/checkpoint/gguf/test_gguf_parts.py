"""Models in parts, written by the package ``gguf`` as llama.cpp's ``gguf-split`` writes them; folders with nothing but GGUF files."""

import shutil

import numpy as np
import pytest
from kit.gguf_models import Model

from llmctl.checkpoint.convert import open_source
from llmctl.checkpoint.gguf import parts
from llmctl.checkpoint.locate import locate
from llmctl.errors import CheckpointError

COUNT = 6


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model():
    return Model("llama")


@pytest.fixture
def folder(model, tmp_path):
    """A folder with the parts of a model."""
    model.gguf(tmp_path / "m.gguf", "llama", "Q8_0", True, split_max_tensors=4)
    (target := tmp_path / "parts").mkdir()
    for file in tmp_path.glob("m-*.gguf"):
        file.rename(target / file.name)
    assert len(list(target.iterdir())) == COUNT
    return target


def name(number, count=COUNT):
    return f"m-{number:05}-of-{count:05}.gguf"


def state(folder, model):
    return {key: value.numpy() for key, value in open_source(folder, model.plugin, model.dims).state.items()}


def test_any_part_and_the_folder_are_the_model(folder, model, tmp_path):
    whole = state(locate(model.gguf(tmp_path / "whole.gguf", "llama", "Q8_0", True)), model)
    found = locate(folder)
    assert found.name.startswith("m-") and "-of-" not in found.name
    assert {found, *(locate(folder / name(number)) for number in (1, 3, COUNT))} == {found}
    for key, value in state(found, model).items():
        np.testing.assert_array_equal(value, whole[key], err_msg=key)


def test_parts_are_found_beside_links_to_other_names(folder, model, tmp_path):
    """As a hub's cache holds them."""
    (blobs := tmp_path / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    assert state(locate(folder / name(2)), model)


def test_a_missing_part_is_named_even_after_the_model_was_read(folder):
    locate(folder)
    for number in (1, 4):
        (folder / name(number)).unlink()
    with pytest.raises(
        CheckpointError, match=f"one of 6 parts of a model, and {name(1)}, {name(4)} are not in {folder}"
    ):
        locate(folder / name(2))
    with pytest.raises(CheckpointError, match="put all parts into one folder"):
        locate(folder)


def test_a_part_that_changed_is_read_anew(folder, model):
    before = locate(folder)
    other = Model("llama", seed=1)
    other.gguf(folder / "m.gguf", "llama", "Q8_0", True, split_max_tensors=4)
    assert locate(folder) != before
    np.testing.assert_array_equal(state(locate(folder), model)["llama.norm.weight"], other.values["model.norm.weight"])


def test_parts_of_other_names_or_models_are_refused(folder, model, tmp_path):
    shutil.copy(folder / name(2), tmp_path / "second.gguf")
    with pytest.raises(
        CheckpointError, match="is part 2 of 6 of a model, and its name does not tell the names of the others"
    ):
        locate(tmp_path / "second.gguf")
    kept = (folder / name(3)).read_bytes()
    shutil.copy(folder / name(2), folder / name(3))
    with pytest.raises(
        CheckpointError, match=r"split.no=1 and split.count=6, and its name part 3 of 6; give it the name"
    ):
        parts.read(folder / name(1))
    (folder / name(3)).write_bytes(kept)
    (other := tmp_path / "other").mkdir()
    Model("llama", layers=3).gguf(other / "m.gguf", "llama", "Q8_0", True, split_max_tensors=5)
    shutil.copy(other / name(COUNT), folder / name(COUNT))
    with pytest.raises(CheckpointError, match="both hold the tensor|they are of different models"):
        locate(folder)


def test_a_folder_with_several_models_lists_them(model, tmp_path):
    (folder := tmp_path / "many").mkdir()
    for kind in ("Q8_0", "F16"):
        model.gguf(folder / f"m-{kind}.gguf", "llama", kind, True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(
        CheckpointError,
        match=rf"(?s)many holds 2 models in GGUF:\n  m-Q8_0.gguf .*\nGive the path of one: {folder}/m-Q8_0.gguf",
    ):
        locate(folder)
    (folder / "m-F16.gguf").unlink()
    assert locate(folder) == locate(folder / "m-Q8_0.gguf")


def test_a_file_that_does_not_exist_is_told_with_those_that_do(model, folder, tmp_path):
    model.gguf(tmp_path / "m-Q8_0.gguf", "llama", "Q8_0", True)
    with pytest.raises(CheckpointError, match="m-Q4_0.gguf does not exist; .* holds .*m-Q8_0.gguf$"):
        locate(tmp_path / "m-Q4_0.gguf")
    (folder / name(1)).unlink()
    with pytest.raises(CheckpointError, match=f"is one of {COUNT} parts of a model, and {name(1)} is not in"):
        locate(folder / name(1))


@pytest.mark.parametrize(
    "other", ["model.safetensors", "adapter_model.safetensors", "weights.packed", "pytorch_model-00001-of-00002.bin"]
)
def test_gguf_files_beside_other_weights_are_passed_over(model, tmp_path, other):
    (folder := tmp_path / "mixed").mkdir()
    model.gguf(folder / "m.gguf", "llama")
    (folder / other).write_bytes(b"")
    assert locate(folder) == folder
