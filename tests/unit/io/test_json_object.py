"""JSON objects: what is not one is refused with the name of the file, whoever reads it."""

import pytest

from llmctl.errors import FileError
from llmctl.io.json_object import read_json, write_json


def test_what_is_written_is_read_again(tmp_path):
    write_json(tmp_path / "a.json", {"key": ["größer", 1.5, None]})
    assert read_json(tmp_path / "a.json") == {"key": ["größer", 1.5, None]}


def test_a_missing_file_is_empty_unless_it_is_required(tmp_path):
    assert read_json(tmp_path / "a.json") == {}
    with pytest.raises(FileError, match=r"a\.json does not exist"):
        read_json(tmp_path / "a.json", required=True)


def test_a_folder_in_its_place_is_refused(tmp_path):
    with pytest.raises(FileError, match="cannot be read: Is a directory"):
        read_json(tmp_path, required=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"a\.json is not valid JSON"),
        (b"\xff", r"a\.json is not valid JSON"),
        (b"[" * 100000, r"a\.json is not valid JSON"),
        (b"[1]", r"a\.json must be a JSON object, not a list"),
        (b"null", r"a\.json must be a JSON object, not a NoneType"),
    ],
)
def test_what_is_not_an_object_is_refused(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FileError, match=message):
        read_json(tmp_path / "a.json")
