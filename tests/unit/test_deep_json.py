"""JSON that is nested beyond the parser's limit reads as any other damaged file."""

from types import SimpleNamespace

import pytest

from llmctl.adapters import prefix_format
from llmctl.checkpoint import open_folder
from llmctl.data import index_cache
from llmctl.errors import CheckpointError, FileError
from llmctl.infer.eager import exported
from llmctl.io.json_object import parse_json, read_json
from llmctl.report.folder import read_rows
from llmctl.train import resume

DEEP = '{"step": 1, "arrays": ' + '[{"a":' * 100_000


def test_the_parser_says_so():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP)


@pytest.mark.parametrize(
    ("name", "read", "error"),
    [
        ("a.json", lambda folder: read_json(folder / "a.json"), FileError),
        ("export.json", exported.read, CheckpointError),
        ("run.json", lambda folder: resume.read(SimpleNamespace(output=folder)), CheckpointError),
        ("model.safetensors.index.json", open_folder, CheckpointError),
    ],
)
def test_files_that_are_needed_are_refused_by_name(tmp_path, name, read, error):
    (tmp_path / name).write_text(DEEP)
    with pytest.raises(error, match=name):
        read(tmp_path)


def test_files_that_can_be_replaced_count_as_damaged(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + DEEP)
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1}]
    (tmp_path / prefix_format.CONFIG).write_text(DEEP)
    assert prefix_format.kind(tmp_path) == ""
    for content in (DEEP, "[]", '{"arrays": 1}'):
        (tmp_path / index_cache.DESCRIPTION).write_text(content)
        assert index_cache._load(tmp_path) is None
