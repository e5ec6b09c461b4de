"""What is written is the old or the new, whole, wherever the process is killed or an operation fails; and can be repeated."""

import shutil
import signal

import numpy as np
import pytest
from kit import corpora
from kit.crash_points import DONE, ERRORS, REFUSED, with_fault

from llmctl import plugins
from llmctl.checkpoint import convert as conversion
from llmctl.checkpoint.hf_config import read_config
from llmctl.data.corpus.build import merge
from llmctl.data.corpus.indexed import Corpus
from llmctl.errors import LlmctlError
from llmctl.io.atomic import atomic_file, atomic_folder

pytestmark = pytest.mark.robust

STARTER = plugins.load("llama").folder / "starter" / "model"
OLD, NEW = [[1, 2], [3]], [[4, 5, 6], [7], [8]]


class Convert:
    """A conversion into several shards; the old model has another data type."""

    def write(self, place, new):
        config = read_config(STARTER)
        plugin = plugins.resolve("llama", config, "config.json")
        source = conversion.open_source(STARTER, plugin, plugin.card.dims_from_config(config))
        dtype = "keep" if new else "float16"
        conversion.convert(source, place / "model", "native", dtype, 600_000, overwrite=True)

    def read(self, place):
        folder = place / "model"
        return {file.name: file.read_bytes() for file in folder.iterdir()} if folder.exists() else None


class Build:
    """A corpus that is written."""

    def write(self, place, new):
        corpora.write(place / "corpus", NEW if new else OLD)

    def read(self, place):
        try:
            corpus = Corpus(place / "corpus")
        except LlmctlError:
            return None
        return [corpus.document(index).tolist() for index in range(len(corpus))]


class Merge(Build):
    """A corpus that is merged of two."""

    def write(self, place, new):
        parts = place.parent / "parts"
        parts.mkdir(exist_ok=True)
        if not (parts / "a.idx").exists():
            corpora.write(parts / "a", NEW[:1])
            corpora.write(parts / "b", NEW[1:])
        if new:
            merge([str(parts / "a"), str(parts / "b")], place / "corpus", overwrite=True)
        else:
            corpora.write(place / "corpus", OLD)


class Folder:
    """A folder of files and folders."""

    def write(self, place, new):
        with atomic_folder(place / "one", overwrite=True) as work:
            for name in ("a", "b"):
                (work / name).mkdir()
                (work / name / "file").write_text(str(new))

    def read(self, place):
        return {str(file.relative_to(place)): file.read_text() for file in (place / "one").rglob("file")} or None


class File:
    """A file."""

    def write(self, place, new):
        with atomic_file(place / "one") as file:
            file.write_bytes(np.full(100, new).tobytes())

    def read(self, place):
        return (place / "one").read_bytes() if (place / "one").exists() else None


@pytest.mark.parametrize("job", [Convert(), Build(), Merge(), Folder(), File()], ids=lambda job: type(job).__name__)
@pytest.mark.parametrize("overwrites", [False, True])
@pytest.mark.parametrize("fault", ["kill", "error"])
def test_a_fault_at_any_operation_leaves_the_old_or_the_new(tmp_path, job, overwrites, fault):
    old, new = _expected(tmp_path, job, overwrites)
    for point in range(1, 400):
        place = _start(tmp_path, job, overwrites)
        error = ERRORS[point % len(ERRORS)] if fault == "error" else None
        reached, code = with_fault(lambda place=place: job.write(place, True), place, point, error)
        assert code in ((-signal.SIGKILL, DONE) if fault == "kill" else (REFUSED, DONE)), point
        assert job.read(place) in ((old, new) if code != DONE else (new,)), point
        job.write(place, True)
        assert job.read(place) == new, point
        assert not [path.name for path in place.iterdir() if path.name.startswith(".")], point
        if not reached:
            break
    assert point > 3 and not reached


def _expected(tmp_path, job, overwrites):
    place = _start(tmp_path, job, overwrites)
    old = job.read(place)
    job.write(place, True)
    return old, job.read(place)


def _start(tmp_path, job, overwrites):
    place, kept = tmp_path / "place", tmp_path / "kept"
    shutil.rmtree(place, ignore_errors=True)
    if not kept.exists():
        kept.mkdir()
        if overwrites:
            job.write(kept, False)
    shutil.copytree(kept, place)
    return place
