"""The two files of a corpus are replaced together, wherever a build is killed."""

import contextlib
import os

import numpy as np
import pytest

from llmctl.data.corpus.corpus_files import bin_path, idx_path
from llmctl.data.corpus.indexed import Corpus, new_corpus
from llmctl.errors import DataError

OLD, NEW = [1, 2, 3], [4, 5]


class Killed(BaseException):
    """Stands for the end of the process."""


def build(prefix, ids, overwrite=False):
    with new_corpus(prefix, np.dtype("u2"), overwrite) as writer:
        writer.add(np.array(ids, np.uint16), np.array([len(ids)]))


def build_killed_at(monkeypatch, point, prefix, ids, overwrite=False):
    """Whether the build reached its rename of this number, where it ended without any of its own cleaning up."""
    rename, count = os.replace, [0]

    def replace(source, target):
        count[0] += 1
        if count[0] == point:
            monkeypatch.setattr("shutil.rmtree", lambda *args, **kwargs: None)
            raise Killed
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with contextlib.suppress(Killed):
            build(prefix, ids, overwrite)
    monkeypatch.undo()
    return count[0] >= point


@pytest.mark.parametrize("point", range(1, 5))
def test_a_first_build_that_was_killed_can_be_repeated(tmp_path, monkeypatch, point):
    prefix = tmp_path / "x"
    build_killed_at(monkeypatch, point, prefix, OLD)
    if idx_path(prefix).exists():
        assert Corpus(prefix).document(0).tolist() == OLD
    else:
        with pytest.raises(DataError, match="does not exist"):
            Corpus(prefix)
        build(prefix, NEW)
        assert Corpus(prefix).document(0).tolist() == NEW
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".committed"]


@pytest.mark.parametrize("point", range(1, 5))
def test_an_overwriting_build_leaves_the_old_or_the_new_corpus(tmp_path, monkeypatch, point):
    prefix = tmp_path / "x"
    build(prefix, OLD)
    build_killed_at(monkeypatch, point, prefix, NEW, overwrite=True)
    assert Corpus(prefix).document(0).tolist() in (OLD, NEW)
    build(prefix, [7], overwrite=True)
    assert Corpus(prefix).document(0).tolist() == [7]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin", "x.idx"]


def test_ids_without_an_index_are_no_corpus_and_in_nobodys_way(tmp_path):
    bin_path(tmp_path / "x").write_bytes(b"left")
    build(tmp_path / "x", OLD)
    with pytest.raises(DataError, match=r"x\.idx already exists"):
        build(tmp_path / "x", NEW)
