"""Answers to a file survive whatever ends the run, and another run does not go on with them."""

import json

import pytest

from llmctl.errors import ConfigError
from llmctl.infer.text.resumable_output import ResumableOutput

SETTINGS = {"input": "abc", "temperature": 1.0, "stops": ["x"]}


def test_answers_are_kept_until_all_are_there_and_written_in_order(tmp_path):
    output = tmp_path / "runs" / "out.jsonl"
    with ResumableOutput(output, SETTINGS) as resumed:
        resumed.add(2, {"output": "ü 2"})
        resumed.add(0, {"output": "0"})
    assert not output.exists() and [path.name for path in output.parent.iterdir()] == [".out.jsonl.answers"]
    with ResumableOutput(output, SETTINGS) as resumed:
        assert resumed.rows == {0: {"output": "0"}, 2: {"output": "ü 2"}}
        resumed.add(1, {"output": "1"})
        resumed.finish()
    assert [json.loads(line)["output"] for line in output.read_text().splitlines()] == ["0", "1", "ü 2"]
    assert [path.name for path in output.parent.iterdir()] == ["out.jsonl"]


def test_a_line_that_was_cut_off_is_forgotten(tmp_path):
    output = tmp_path / "out.jsonl"
    with ResumableOutput(output, SETTINGS) as resumed:
        resumed.add(0, {"output": "0"})
        resumed.add(1, {"output": "1"})
    content = resumed.path.read_bytes()
    for cut in range(1, 12):
        resumed.path.write_bytes(content[:-cut])
        with ResumableOutput(output, SETTINGS) as again:
            assert set(again.rows) == {0}
            again.add(1, {"output": "new"})
        with ResumableOutput(output, SETTINGS) as again:
            assert again.rows[1] == {"output": "new"}


def test_another_run_is_refused_with_what_changed(tmp_path):
    output = tmp_path / "out.jsonl"
    with ResumableOutput(output, SETTINGS) as resumed:
        resumed.add(0, {"output": "0"})
    with pytest.raises(ConfigError, match=r"holds 1 answers .* \(temperature: 1.0 then, 0.5 now\).* start again"):
        ResumableOutput(output, {**SETTINGS, "temperature": 0.5})
    resumed.path.write_text('"nonsense"\n5\n')
    with pytest.raises(ConfigError, match="is not what llmctl writes"):
        ResumableOutput(output, SETTINGS)


def test_a_run_that_answered_nothing_stands_in_no_other_ones_way(tmp_path):
    output = tmp_path / "out.jsonl"
    with ResumableOutput(output, SETTINGS):
        pass
    for _ in range(2):
        with ResumableOutput(output, {**SETTINGS, "temperature": 0.5}) as other:
            assert not other.rows
    with other.path.open() as stream:
        assert json.loads(stream.read())["temperature"] == 0.5


def test_two_runs_do_not_write_the_same_file(tmp_path):
    with ResumableOutput(tmp_path / "out.jsonl", SETTINGS), pytest.raises(ConfigError, match="is in use"):
        ResumableOutput(tmp_path / "out.jsonl", SETTINGS)
