"""Corpora on disk: Megatron's bytes, every dtype, damage that is recognised, nothing half after an interruption."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from kit.corpora import DOCUMENTS, write

from llmctl.data.corpus import build as corpora
from llmctl.data.corpus.corpus_files import bin_path, idx_path
from llmctl.data.corpus.indexed import DTYPES, HEADER, Corpus, new_corpus, token_dtype
from llmctl.errors import DataError

GOLDEN = json.loads((Path(__file__).resolve().parents[3] / "goldens" / "megatron_core.json").read_text())


def shown(corpus):
    return [corpus.document(i).tolist() for i in range(corpus.documents)]


def test_the_bytes_are_those_that_megatron_writes(tmp_path):
    write(tmp_path / "a")
    assert idx_path(tmp_path / "a").read_bytes().hex() == GOLDEN["idx"]
    assert bin_path(tmp_path / "a").read_bytes().hex() == GOLDEN["bin"]


@pytest.mark.parametrize(("code", "name"), DTYPES.items())
def test_every_dtype_code_is_written_and_read(tmp_path, code, name):
    corpus = write(tmp_path / "a", dtype=name)
    assert idx_path(tmp_path / "a").read_bytes()[17] == code
    assert corpus.dtype == np.dtype(name) and shown(corpus) == DOCUMENTS
    assert np.fromfile(bin_path(tmp_path / "a"), name).tolist() == [5, 6, 7, 9, 1, 2]


def test_documents_of_several_sequences_and_empty_ones_are_read(tmp_path):
    """The layout written by hand from the format's description: three sequences in two documents, and an empty one."""
    idx_path(tmp_path / "a").write_bytes(
        b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, 4, 4) + struct.pack("<4i4q4q", 1, 2, 0, 1, 0, 4, 12, 12, 0, 2, 3, 4)
    )
    bin_path(tmp_path / "a").write_bytes(struct.pack("<4i", 70000, 2, 3, 4))
    corpus = Corpus(tmp_path / "a.idx")
    assert shown(corpus) == [[70000, 2, 3], [], [4]]
    assert (len(corpus), corpus.documents, corpus.tokens) == (4, 3, 4)
    assert corpus.get(1, 1).tolist() == [3] and corpus.get(1, 0, 1).tolist() == [2]
    with pytest.raises(DataError, match="has no document 3; it has documents 0 to 2"):
        corpus.document(3)


def test_modes_of_multimodal_corpora_are_passed_over(tmp_path):
    write(tmp_path / "a")
    with open(idx_path(tmp_path / "a"), "ab") as stream:
        stream.write(b"\0" * 3)
    assert shown(Corpus(tmp_path / "a")) == DOCUMENTS


def test_sixteen_bits_are_used_up_to_the_last_id_that_fits():
    assert token_dtype(32000) == token_dtype(65536) == np.uint16
    assert token_dtype(65537) == np.int32


def test_an_id_that_does_not_fit_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(DataError, match="the id 70000 does not fit into uint16"):
        with new_corpus(tmp_path / "a", np.uint16) as writer:
            writer.add(np.array([1, 70000]), np.array([2]))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_build_leaves_the_old_corpus_or_nothing(tmp_path):
    for _ in range(2):
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(KeyboardInterrupt):
            with new_corpus(tmp_path / "a", np.uint16, overwrite=True) as writer:
                writer.add(np.array([1, 2]), np.array([2]))
                raise KeyboardInterrupt
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        write(tmp_path / "a")


def test_a_corpus_is_not_overwritten_unasked(tmp_path):
    write(tmp_path / "a")
    with pytest.raises(DataError, match="already exists.*--overwrite"):
        with new_corpus(tmp_path / "a", np.uint16):
            pass


def edited(place, form, *values):
    def edit(raw):
        return raw[:place] + struct.pack(form, *values) + raw[place + struct.calcsize(form) :]

    return edit


SIZES, POINTERS, BORDERS = HEADER.size, HEADER.size + 12, HEADER.size + 36
DAMAGE = {
    "magic": (edited(0, "<5s", b"WRONG"), "is not the index of a corpus"),
    "old": (edited(0, "<8s", b"TNTIDX\0\0"), "old lazy format"),
    "version": (edited(9, "<Q", 2), "has format version 2; only version 1 is supported"),
    "dtype": (edited(17, "<B", 77), "unknown dtype code 77; known are 1 uint8"),
    "cut-header": (lambda raw: raw[:20], "truncated: it has 20 bytes"),
    "cut": (lambda raw: raw[:-5], "is truncated: 3 sequences need"),
    "longer": (lambda raw: raw + b"12345", "is damaged: 3 sequences need"),
    "huge-count": (edited(18, "<Q", 1 << 60), "is truncated"),
    "pointers": (edited(POINTERS + 16, "<q", 0), "sequence 2 starts at byte 0, before the previous one ends at byte 8"),
    "negative": (edited(SIZES, "<i", -1), "sequence 0 has -1 tokens"),
    "borders": (edited(BORDERS + 8, "<q", 9), "document index does not increase"),
    "more-than-bin": (edited(SIZES + 8, "<i", 4), "a.bin is truncated: it has 12 bytes, but a.idx describes 16"),
    "less-than-bin": (edited(SIZES + 8, "<i", 1), "a.bin is longer.*do not fit together"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_recognised_and_named(tmp_path, kind):
    write(tmp_path / "a")
    edit, message = DAMAGE[kind]
    idx_path(tmp_path / "a").write_bytes(edit(idx_path(tmp_path / "a").read_bytes()))
    with pytest.raises(DataError, match=message):
        Corpus(tmp_path / "a")


@pytest.mark.parametrize("missing", [idx_path, bin_path])
def test_a_missing_file_is_named(tmp_path, missing):
    write(tmp_path / "a")
    missing(tmp_path / "a").unlink()
    with pytest.raises(DataError, match=f"{missing('a').name} is missing"):
        Corpus(tmp_path / "a")


def test_merging_appends_documents_whatever_their_layout(tmp_path):
    write(tmp_path / "a")
    # Ids out of contiguity: a gap of one id, as other tools may leave.
    write(tmp_path / "b", [[3], [4, 4]])
    raw = idx_path(tmp_path / "b").read_bytes()
    idx_path(tmp_path / "b").write_bytes(edited(HEADER.size + 8 + 8, "<q", 4)(raw))
    bin_path(tmp_path / "b").write_bytes(struct.pack("<4H", 3, 999, 4, 4))
    assert corpora.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m") == (5, 9)
    assert shown(Corpus(tmp_path / "m")) == [*DOCUMENTS, [3], [4, 4]]


def test_merging_refuses_other_dtypes_and_itself(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", dtype=np.int32)
    with pytest.raises(DataError, match="b holds int32 and .*a uint16"):
        corpora.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    with pytest.raises(DataError, match="is both source and target"):
        corpora.merge([tmp_path / "a"], tmp_path / "a", overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match="is both source and target"):
        corpora.merge([tmp_path / "a"], tmp_path / "link" / "a", overwrite=True)
