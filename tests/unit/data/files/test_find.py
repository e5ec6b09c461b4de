"""Files of a split are found in folders of every layout; what is held out in them is not trained on."""

import json
import os

import pytest
from kit.data_files import WRITERS, write_dataset, write_datasets
from kit.examples import read_split

from llmctl.data.files import find_files, note_of, records
from llmctl.data.files.contents import read_text
from llmctl.data.sft.examples import ExampleReader
from llmctl.errors import DataError

ROW = {"instruction": "a", "output": "b"}


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        WRITERS["table.parquet" if name.endswith("parquet") else "lines.jsonl"](folder / name, [ROW])


def found(folder, split="train"):
    files = find_files(folder, split)
    return tuple([str(path.relative_to(folder)) for path in paths] for paths in (files.files, files.left_out))


@pytest.mark.parametrize(
    ("names", "train", "left_out"),
    [
        (["train.jsonl", "dev.jsonl", "README.md"], ["train.jsonl"], ["dev.jsonl"]),
        (
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"],
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
            ["data/test-00000-of-00001.parquet"],
        ),
        (["train/0.parquet", "train/1.parquet", "validation/0.parquet"], ["train/0.parquet", "train/1.parquet"], ["validation"]),
        (["part-1.jsonl", "part-0.jsonl", "alpaca_test.json"], ["part-0.jsonl", "part-1.jsonl"], ["alpaca_test.json"]),
        (["latest.jsonl", "contest.jsonl"], ["contest.jsonl", "latest.jsonl"], []),
        (["data/a.jsonl", "data/valid.jsonl"], ["data/a.jsonl"], ["data/valid.jsonl"]),
    ],
)  # fmt: skip
def test_what_is_named_after_a_split_belongs_to_it(tmp_path, names, train, left_out):
    write(tmp_path, *[name for name in names if name != "README.md"])
    (tmp_path / "README.md").write_text("about")
    assert found(tmp_path) == (train, left_out)


def test_held_out_files_of_a_folder_are_found_by_any_of_their_names(tmp_path):
    write(tmp_path, "train.jsonl", "validation.jsonl", "test.jsonl")
    assert found(tmp_path, "dev") == (["validation.jsonl"], [])
    assert not find_files(tmp_path, "dev", optional=True).files
    note = note_of(find_files(tmp_path, "train").left_out)
    assert (
        note
        == f"not trained on: {tmp_path}/test.jsonl, {tmp_path}/validation.jsonl; name it in data.dev to evaluate on it"
    )
    assert note_of([]) is None


def test_folders_of_datasets_are_read(tmp_path):
    write_dataset(tmp_path / "one", [ROW] * 2)
    (tmp_path / "one" / "cache-1.arrow").write_bytes(b"")
    assert found(tmp_path / "one") == (["data-00000-of-00001.arrow"], [])
    write_datasets(tmp_path / "more", {"train": [ROW], "test": [ROW]})
    assert found(tmp_path / "more") == (["train/data-00000-of-00001.arrow"], ["test"])
    assert found(tmp_path / "more", "dev")[0] == ["test/data-00000-of-00001.arrow"]
    assert not find_files(tmp_path / "more", "dev", optional=True).files
    assert len(read_split([tmp_path / "one", tmp_path / "more"], "train", ExampleReader())) == 3
    assert [json.loads(text) for _, text in records(tmp_path / "one" / "data-00000-of-00001.arrow")] == [ROW] * 2


def test_pipes_are_refused_before_they_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (lambda path: find_files(path, "train"), read_text, lambda path: list(records(path))):
        with pytest.raises(DataError, match="pipe is a pipe or a device, which can be read only once"):
            read(tmp_path / "pipe")


def test_folders_without_data_say_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        find_files(tmp_path / "absent", "train")
    with pytest.raises(DataError, match=r"has no train data: looked for train.jsonl, .*\.parquet, .*\.jsonl\.zst"):
        find_files(tmp_path, "train")
    write(tmp_path, "hub/main/train-0.parquet", "hub/socratic/train-0.parquet")
    with pytest.raises(DataError, match="it has the folders main, socratic, name one"):
        find_files(tmp_path / "hub", "train")
    write_datasets(tmp_path / "more", {"test": [ROW]})
    with pytest.raises(DataError, match="has no split train; it has test. Name the folder of one, such as .*more/test"):
        find_files(tmp_path / "more", "train")
    (tmp_path / "more" / "test" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataError, match="is missing, which .*state.json names"):
        find_files(tmp_path / "more", "dev")
    (tmp_path / "more" / "dataset_dict.json").write_text("[]")
    with pytest.raises(DataError, match="this folder of datasets is incomplete"):
        find_files(tmp_path / "more", "train")
