"""Streaming: records by index are those of reading, all checked once, kept in a cache that knows when it is out of date."""

import json
import os
import tracemalloc
from types import SimpleNamespace

import pytest
from kit.data_files import WRITERS, lines_of

from llmctl.data.encoded import Coder, encode
from llmctl.data.files import records
from llmctl.data.index_cache import Cache
from llmctl.data.sft.examples import ExampleReader
from llmctl.data.streaming import encode_streamed, open_examples, open_index
from llmctl.errors import DataError

ROWS = [{"instruction": f"ask {number} 你好", "output": "b" * (number % 7 + 1), "mood": "x"} for number in range(20)]


def opened(*paths, reader=None, cache=None):
    return open_examples(paths, ExampleReader, reader or ExampleReader(), "train", cache)


def coder(calls=None):
    """Rows of the bytes of an answer; those of three bytes are dropped."""

    def made(example):
        ids = [*example.conversation.messages[-1].text.encode()]
        if calls is not None:
            calls.append(example.source)
        return None if len(ids) == 3 else SimpleNamespace(input_ids=ids, truncated=len(ids) > 5)

    return Coder(made, lambda row: len(row.input_ids), lambda row: row.input_ids)


@pytest.mark.parametrize("name", WRITERS)
def test_records_by_index_are_those_of_reading(tmp_path, name):
    WRITERS[name](tmp_path / name, ROWS)
    index = open_index(tmp_path / name, Cache((tmp_path / "cache",)))
    found = list(records(tmp_path / name))
    assert [(place, json.loads(text)) for place, text in index] == [(place, json.loads(text)) for place, text in found]
    again = open_index(tmp_path / name, Cache((tmp_path / "cache",)))
    assert again.record(7) == index.record(7) and len(again) == len(ROWS)
    assert (index.texts == tmp_path / name) == (name in ("lines.jsonl", "no-suffix", "lines.txt", "plain.jsonl.gz"))


def test_blank_lines_and_lines_that_are_no_text_keep_their_numbers(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf\n{"a": 1}\r\n\n \n\xff\n{"a": 2}')
    index = open_index(tmp_path / "a.jsonl", Cache((tmp_path / "cache",)))
    assert [(place.rpartition(":")[2], text and text.strip()) for place, text in index] == [
        ("2", '{"a": 1}'), ("5", None), ("6", '{"a": 2}'),
    ]  # fmt: skip


def test_examples_are_those_of_the_files_and_what_was_seen_is_told_each_time(tmp_path):
    WRITERS["lines.jsonl"](tmp_path / "a.jsonl", ROWS)
    WRITERS["table.parquet"](tmp_path / "b.parquet", ROWS[:3])
    for _ in range(2):
        reader = ExampleReader()
        found = opened(tmp_path / "a.jsonl", tmp_path / "b.parquet", reader=reader)
        assert reader.summary() == f"data format: Alpaca ({tmp_path / 'a.jsonl'}, {tmp_path / 'b.parquet'})"
        assert reader.warnings()[0].startswith("the key 'mood' holds text that is not read, in 23 lines (")
    assert [row.question for row in found] == [row["instruction"] for row in (*ROWS, *ROWS[:3])]
    assert found[-1].source == f"{tmp_path / 'b.parquet'}:row 3" and [row.source for row in found[20:22]] == [
        f"{tmp_path / 'b.parquet'}:row 1", f"{tmp_path / 'b.parquet'}:row 2",
    ]  # fmt: skip


def test_mistakes_are_told_each_time_and_cache_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines_of([{"instruction": "a", "response": "b"}] * 5 + ROWS))
    (tmp_path / "b.jsonl").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(
            DataError, match=r"6 problems .*\n  5 lines .*a.jsonl:3 ...\): looks like Alpaca .*\n.*b.jsonl: the file"
        ):
            opened(tmp_path / "a.jsonl", tmp_path / "b.jsonl")


def test_lengths_are_cached_until_data_settings_or_encoding_change(tmp_path):
    WRITERS["lines.jsonl"](tmp_path / "a.jsonl", ROWS)

    def run(settings="s", how=coder):
        calls = []
        found = encode_streamed(opened(tmp_path / "a.jsonl"), how(calls), {"x": settings})
        expected = encode(opened(tmp_path / "a.jsonl"), how())
        assert (found.kept.tolist(), found.rows.lengths.tolist()) == (
            expected.kept.tolist(),
            expected.rows.lengths.tolist(),
        )
        assert (found.dropped, found.truncated) == (expected.dropped, expected.truncated)
        assert found.rows.digest == expected.rows.digest
        assert [row.input_ids for row in found.rows] == [row.input_ids for row in expected.rows]
        return len(calls) - len(found.rows)

    def longer(calls=None):
        inner = coder(calls)
        return Coder(lambda example: (row := inner.encode(example)) and SimpleNamespace(
            input_ids=[*row.input_ids, 1], truncated=False), inner.length, inner.identity)  # fmt: skip

    probes, whole = len(ROWS), 2 * len(ROWS)
    assert [run(), run(), run("other"), run(), run(how=longer), run(how=longer)] == [
        whole, probes, whole, probes, whole, probes,
    ]  # fmt: skip
    WRITERS["lines.jsonl"](tmp_path / "a.jsonl", ROWS[:-1])
    assert run() == 2 * len(ROWS) - 2


def test_a_file_that_changes_during_a_run_is_an_error(tmp_path):
    WRITERS["lines.jsonl"](tmp_path / "a.jsonl", ROWS)
    found = opened(tmp_path / "a.jsonl")
    os.utime(tmp_path / "a.jsonl", ns=(0, 0))
    with pytest.raises(DataError, match="has changed since the run began"):
        found[0]


def test_where_no_index_can_be_written_is_said(tmp_path, monkeypatch):
    WRITERS["lines.jsonl"](tmp_path / "a.jsonl", ROWS)
    (tmp_path / "index-cache").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert len(opened(tmp_path / "a.jsonl")) == 20 and [*(tmp_path / "home").rglob("starts.npy")]
    assert opened(tmp_path / "a.jsonl", cache=tmp_path / "chosen")[0].question == ROWS[0]["instruction"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match="set data.index_cache to one that is"):
        opened(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["lines.jsonl", "list.json", "lines.jsonl.gz"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    rows = [{"instruction": f"{number} " + "x" * 20000, "output": "b"} for number in range(800)]
    WRITERS[name](tmp_path / name, rows)
    del rows
    tracemalloc.start()
    found = opened(tmp_path / name)
    encoded = encode_streamed(found, coder(), {})
    assert sum(len(row.input_ids) for row in encoded.rows) == 800
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 16 MB of text; a list of JSON is read in parts of a megabyte, which may have to be joined.
    assert peak < 6_000_000


def test_a_damaged_index_is_made_again(tmp_path):
    WRITERS["list.json"](tmp_path / "a.json", ROWS)
    expected = [*open_index(tmp_path / "a.json", Cache((tmp_path / "cache",)))]
    (entry,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    for name in ("starts.npy", "records.bin", "description.json"):
        (entry / name).write_bytes((entry / name).read_bytes()[:-9])
        assert [*open_index(tmp_path / "a.json", Cache((tmp_path / "cache",)))] == expected
