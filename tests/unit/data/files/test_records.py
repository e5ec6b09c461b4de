"""Files of every kind give the same records; what is damaged or of another kind is one clear error."""

import gzip
import json
import tracemalloc

import pytest
from kit.data_files import WRITERS, lines_of, write_zstandard

from llmctl.data.files import json_records, records
from llmctl.errors import DataError

ROWS = [{"instruction": f"ask {number} 你好", "output": 'b,\n"c"\t; d'} for number in range(5)]


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_records(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path, ROWS)
    count = []
    found = list(records(path, count.append))
    assert [json.loads(text) for _, text in found] == ROWS
    assert len({place for place, _ in found}) == len(ROWS) and all(place.startswith(f"{path}:") for place, _ in found)
    assert sum(count) > 0


def test_places_in_tables_are_lines_of_the_file(tmp_path):
    (tmp_path / "a.csv").write_text('instruction,output\n"a\nb",c\nd,e\n')
    assert [place.rpartition(":")[2] for place, _ in records(tmp_path / "a.csv")] == ["2", "4"]
    (tmp_path / "b.csv").write_text("instruction;output\na;b, c\n")
    assert [json.loads(text) for _, text in records(tmp_path / "b.csv")] == [{"instruction": "a", "output": "b, c"}]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b'[\n{"src": "a"},\n{"src": oops}\n]\n', "begins as a JSON list .*Expecting value in line 3"),
        ("a.json", b'[{"src": "a"}', "expected , or ], found the end of the file"),
        ("a.json", b'[{"src": "a"}] x', "something follows the list in line 1"),
        ("a.json", b'[{"src": "\xff"}]', "not valid UTF-8"),
        ("a.json", b'{\n"src": "a"\n}', "is a JSON object over several lines"),
        ("a.jsonl.gz", gzip.compress(b'{"src": "a"}' * 99, mtime=0)[:-9], "is damaged"),
        ("a.csv", b"instruction,output\na\n", "a.csv:2 has 1 cells, the head line has 2: instruction, output"),
        ("a.csv", b"a,a\nb,c\n", "names a column twice"),
        ("a.csv", b'a,b\n"c"d,e\n', "cannot be read"),
        ("a.csv", b"a,b\n\xff,c\n", "not valid UTF-8"),
        ("a.parquet", b"PAR1 and no table", "cannot be read"),
        ("a.arrow", b"ARROW1 and no table", "cannot be read"),
        ("a.xlsx", b"PK\x03\x04", "a zip archive or an Excel file; unpack it"),
        ("a.jsonl", '{"src": "a"}'.encode("utf-16"), "UTF-16 text; convert it"),
        ("a.txt", b"Once upon a time.\n", "looks like plain text; .* llmctl data build"),
    ],
)
def test_what_cannot_be_read_is_one_error(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        list(records(tmp_path / name))


def test_damaged_zstandard_is_one_error(tmp_path):
    write_zstandard(tmp_path / "a.zst", lines_of(ROWS * 99))
    (tmp_path / "a.zst").write_bytes((tmp_path / "a.zst").read_bytes()[:-9])
    with pytest.raises(DataError, match="is damaged"):
        list(records(tmp_path / "a.zst"))


@pytest.mark.parametrize("name", ["table.parquet", "file.arrow", "list.json.zst"])
def test_missing_pyarrow_is_said_with_the_extra_that_has_it(tmp_path, monkeypatch, name):
    WRITERS[name](tmp_path / name, ROWS)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'paddle-llmctl\[data\]'"):
        list(records(tmp_path / name))


def test_a_list_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(json_records, "CHUNK", 1 << 10)
    rows = [{"text": '\\"\u2028]},{' + "x" * (number * 37 % 4000)} for number in range(3000)]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    tracemalloc.start()
    found = sum(json.loads(text) == row for (_, text), row in zip(records(tmp_path / "a.json"), rows, strict=True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == len(rows) and peak < 1_000_000 < (tmp_path / "a.json").stat().st_size
