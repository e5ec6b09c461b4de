"""Text that comes with a model."""

import pytest

from llmctl.errors import FileError
from llmctl.io.json_object import parse_json, read_json
from llmctl.io.text import read_text


def test_what_is_no_text_is_named(tmp_path):
    (tmp_path / "a").write_text("é", encoding="utf-8")
    assert read_text(tmp_path / "a") == "é"
    (tmp_path / "a").write_bytes(b"\xff")
    with pytest.raises(FileError, match="a is not valid UTF-8"):
        read_text(tmp_path / "a")
    with pytest.raises(FileError, match="b does not exist"):
        read_text(tmp_path / "b")
    with pytest.raises(FileError, match="cannot be read: Is a directory"):
        read_text(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (r'{"a": "\ud800"}', r"\\ud800 is half of a surrogate pair"),
        ('{"a": 18446744073709551616}', "18446744073709551616.* does not fit into 64 bits"),
        ('{"a": -9223372036854775809}', "does not fit into 64 bits"),
        ('{"a": ' + "1" * 5000 + "}", "does not fit into 64 bits"),
    ],
)
def test_values_that_no_file_needs_are_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FileError, match=f"a.json is not valid JSON: .*{message}"):
        read_json(tmp_path / "a.json")


def test_pairs_and_long_numbers_of_other_texts_are_read():
    assert parse_json(r'{"a": "\ud83d\ude00"}') == {"a": "\U0001f600"}
    assert parse_json("1" * 30) == int("1" * 30)
