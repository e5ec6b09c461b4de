import pytest

from llmctl.errors import ConfigError
from llmctl.hub.find import model_folder
from llmctl.hub.name import HubName, parse
from llmctl.hub.origin import origin

COMMIT = "0123456789" * 4


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "text, name",
    [
        ("Qwen/Qwen2.5-0.5B", HubName("hf", "Qwen/Qwen2.5-0.5B")),
        ("Qwen/Qwen2.5-0.5B@refs/pr/1", HubName("hf", "Qwen/Qwen2.5-0.5B", "refs/pr/1")),
        ("hf:gpt2", HubName("hf", "gpt2")),
        ("hf:a/b@v1", HubName("hf", "a/b", "v1")),
        ("modelscope:Qwen/Qwen2.5-0.5B", HubName("modelscope", "Qwen/Qwen2.5-0.5B")),
        ("a/b:Q4_K_M", HubName("hf", "a/b", choice="Q4_K_M")),
        ("hf.co/a/b:Q4_K_M", HubName("hf", "a/b", choice="Q4_K_M")),
        ("https://huggingface.co/a/b", HubName("hf", "a/b")),
        ("https:/huggingface.co/a/b", HubName("hf", "a/b")),  # as paths write it
        ("hf:gpt2:BF16/gpt2-BF16.gguf@v1", HubName("hf", "gpt2", "v1", "BF16/gpt2-BF16.gguf")),
    ],
)
def test_names_on_a_hub(text, name):
    assert parse(text) == name
    assert parse(str(name)) == name


@pytest.mark.parametrize(
    "text", ["gpt2", "./a/b", "../a/b", "/a/b", "~/a/b", "a/b/c", "a", "", "a\\b/c", "plugin:model", "a/b:", "a/b:c:d"]
)
def test_what_is_no_name_is_a_path(text):
    assert parse(text) is None


def test_what_exists_is_a_path_and_so_is_what_would_be_in_a_folder_that_exists(tmp_path):
    (tmp_path / "runs" / "model").mkdir(parents=True)
    assert parse("runs/model") is None
    assert parse("runs/mistyped") is None
    assert parse("hf:runs/model") == HubName("hf", "runs/model")


@pytest.mark.parametrize(
    "text", ["https://huggingface.co/a/b/tree/main", "hf:", "hf:a/b/c", "modelscope:model", "hf:/a/b", "hf:a b"]
)
def test_a_prefix_demands_a_name(text):
    with pytest.raises(ConfigError, match="is not the name of a model; expected"):
        parse(text)


def test_a_revision_of_its_own_and_another_exclude_each_other():
    assert parse("a/b", "v1").revision == "v1" == parse("a/b@v1", "v1").revision
    with pytest.raises(ConfigError, match="revision=v2 is another"):
        parse("a/b@v1", "v2")


def test_a_revision_has_no_effect_on_a_path(tmp_path):
    with pytest.raises(ConfigError, match="has no effect on .*, which is a path"):
        model_folder(tmp_path, "v1")


@pytest.mark.parametrize(
    "folder, name",
    [
        (f"hub/models--Qwen--Qwen2.5-0.5B/snapshots/{COMMIT}", HubName("hf", "Qwen/Qwen2.5-0.5B", COMMIT)),
        (f"hub/models--gpt2/snapshots/{COMMIT}", HubName("hf", "gpt2", COMMIT)),
        ("modelscope/models/Qwen--Qwen2.5-0.5B/snapshots/master", HubName("modelscope", "Qwen/Qwen2.5-0.5B", "master")),
        ("runs/model", None),
        ("snapshots", None),
    ],
)
def test_the_origin_of_a_folder_is_told_by_its_place_in_a_cache(tmp_path, folder, name):
    assert origin(tmp_path / folder) == name


def test_the_origin_of_a_folder_of_a_gguf_file_is_told_by_its_link(tmp_path):
    file = tmp_path / f"models--a--b/snapshots/{COMMIT}/BF16/m.gguf"
    file.parent.mkdir(parents=True)
    file.symlink_to(tmp_path / "blobs")
    (folder := tmp_path / "cached").mkdir()
    (folder / "model.gguf").symlink_to(file)
    assert origin(folder) == HubName("hf", "a/b", COMMIT, "BF16/m.gguf")
    (folder / "model.gguf").unlink()
    (folder / "model.gguf").symlink_to(tmp_path / "blobs")
    assert origin(folder) is None and origin(file.parent) is None
