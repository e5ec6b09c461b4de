"""Samples to pretrain on: equal to Megatron's, equal to a plain twin, and a function of the settings and the number."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.corpora import write

from llmctl.config import pretrain
from llmctl.data.corpus import blend, sample_index
from llmctl.data.corpus.samples import SampleSpec, open_split
from llmctl.data.sft.encoding import IGNORE_INDEX
from llmctl.errors import DataError

GOLDEN = json.loads((Path(__file__).resolve().parents[3] / "goldens" / "megatron_core.json").read_text())


@pytest.mark.parametrize("case", ["one", "apart", "whole"])
def test_indices_are_those_of_megatron(case):
    """One pass in part; a last pass of which little is used, shuffled apart; a last pass that is used whole."""
    samples, seq_length, seed = GOLDEN[f"{case}_set"]
    made = sample_index.build(np.array(GOLDEN["sizes"], np.int32), range(1, 12), samples, seq_length, seed)
    assert made.documents.tolist() == GOLDEN[f"{case}_documents"]
    assert made.starts.tolist() == GOLDEN[f"{case}_starts"]
    assert made.order.tolist() == GOLDEN[f"{case}_order"]
    apart = sample_index.plan(180, samples, seq_length).before_last
    assert (apart is not None) == (case == "apart")


def test_blending_is_that_of_megatron():
    chosen, within = blend.assign(GOLDEN["weights"], 40)
    assert chosen.tolist() == GOLDEN["chosen"] and within.tolist() == GOLDEN["within"]


@given(st.data())
def test_sample_starts_equal_those_of_walking_along_the_tokens(data):
    sizes = np.array(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=12)), np.int32)
    line = np.array(data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=20)), np.int32)
    seq_length = data.draw(st.integers(1, 12))
    tokens = [(i, offset) for i, document in enumerate(line) for offset in range(sizes[document])]
    samples = (len(tokens) - 1) // seq_length
    if samples < 1:
        return
    expected = [(0, 0), *(tokens[k * seq_length] for k in range(1, samples + 1))]
    made = sample_index.sample_starts(sizes, line, samples, seq_length)
    assert [tuple(row) for row in made.tolist()] == expected


@given(st.integers(2, 500), st.integers(1, 300), st.integers(1, 40))
def test_passes_are_the_fewest_that_give_enough_samples(tokens, samples, seq_length):
    epochs = sample_index.plan(tokens, samples, seq_length)
    assert epochs.samples >= samples
    assert epochs.count == 1 or ((epochs.count - 1) * tokens - 1) // seq_length < samples


def test_millions_of_short_documents_are_indexed_without_a_loop_over_them():
    sizes = np.full(2_000_000, 50, np.int32)
    made = sample_index.build(sizes, range(len(sizes)), 0, 1024, 1)
    assert len(made) == (100_000_000 - 1) // 1024
    positions = made.starts[:, 0].astype(np.int64) * 50 + made.starts[:, 1]
    assert (np.diff(positions) == 1024).all()


@pytest.mark.parametrize(
    ("text", "documents", "expected"),
    [
        ("949,50,1", 1010, [(0, 958), (958, 1009), (1009, 1010)]),
        ("8,1,1", 7, [(0, 6), (6, 6), (6, 7)]),
        ("0,1,1", 3, [(0, 0), (0, 2), (2, 3)]),
        ("1", 5, [(0, 5), (5, 5), (5, 5)]),
    ],
)
def test_documents_are_split_by_rounded_borders(text, documents, expected):
    """The first two as convert_split_vector_to_split_matrix of Megatron Core gives them."""
    parts = sample_index.split_documents(pretrain.parse_split(text), documents)
    assert [(part.start, part.stop) for part in parts] == expected


@pytest.mark.parametrize("text", ["", "a,b", "1,2,3,4", "0,0,0", "1,-1,0", "nan", "inf"])
def test_an_invalid_split_is_refused(text):
    with pytest.raises(DataError, match="expected one to three weights"):
        pretrain.parse_split(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three corpora whose tokens say where they stand: corpus * 10000 + position."""
    folder = tmp_path_factory.mktemp("corpora")
    random = np.random.default_rng(0)
    for number, name in enumerate(("a", "b", "c"), 1):
        lengths = random.integers(1, 30, 50)
        ids = np.arange(lengths.sum()) + 10000 * number
        write(folder / name, np.split(ids, np.cumsum(lengths)[:-1]))
    return folder


def test_a_sample_is_consecutive_tokens_of_the_line_of_documents(folder):
    samples = open_split(SampleSpec([str(folder / "a")], "1", 16, seed=3), "train", 60)
    index, corpus = samples.shares[0].index, samples.shares[0].corpus
    line = np.concatenate([corpus.get(i) for i in index.documents])
    for i in range(60):
        first = int(index.order[i]) * 16
        assert samples[i].input_ids.tolist() == line[first : first + 16].tolist()
        assert samples[i].labels.tolist() == line[first + 1 : first + 17].tolist()
    with pytest.raises(IndexError):
        samples[60]


def test_every_token_is_seen_once_in_a_pass(folder):
    samples = open_split(SampleSpec([str(folder / "a")], "1", 16), "train")
    seen = Counter(int(token) for i in range(len(samples)) for token in samples[i].input_ids)
    total = samples.shares[0].corpus.tokens
    assert set(seen.values()) == {1} and len(seen) == len(samples) * 16 > total - 17


def test_splits_share_no_token(folder):
    setting = SampleSpec([str(folder / "a")], "6,3,1", 8)
    seen = [
        {int(token) for i in range(len(split)) for token in (*split[i].input_ids, split[i].labels[-1])}
        for split in (open_split(setting, name) for name in ("train", "valid", "test"))
    ]
    assert all(seen) and not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_a_sample_depends_on_the_settings_and_its_number_alone(folder):
    setting = SampleSpec(["0.3", str(folder / "a"), "0.7", str(folder / "b")], "1", 16)
    one, other = open_split(setting, "train", 40), open_split(setting, "train", 40)
    backwards = [other[i] for i in reversed(range(40))][::-1]
    for i in range(40):
        assert np.array_equal(one[i].input_ids, backwards[i].input_ids)
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != open_split(SampleSpec(setting.corpora, "1", 16, seed=1), "train", 40).fingerprint


def test_another_text_of_the_same_lengths_has_another_fingerprint(tmp_path):
    marks = set()
    for first in (1, 2):
        write(tmp_path / "a", [[first, 5, 6, 7, 8], [3, 4, 5]])
        marks.add(open_split(SampleSpec([str(tmp_path / "a")], "1", 2), "train", 3).fingerprint)
    assert len(marks) == 2


def test_corpora_are_drawn_by_weight_each_in_its_own_order(folder):
    samples = open_split(SampleSpec([f"0.25 {folder / 'a'} 0.75 {folder / 'b'}"], "1", 16), "train", 100)
    origin = [int(samples[i].input_ids[0]) // 10000 for i in range(100)]
    assert Counter(origin) == {1: 25, 2: 75}
    alone = open_split(SampleSpec([str(folder / "a")], "1", 16), "train", 25)
    of_a = [samples[i].input_ids.tolist() for i in range(100) if origin[i] == 1]
    assert of_a == [alone[i].input_ids.tolist() for i in range(25)]


def test_documents_in_a_sample_are_told_apart_on_request(folder):
    whole = open_split(SampleSpec([str(folder / "a")], "1", 16), "train")
    parted = open_split(SampleSpec([str(folder / "a")], "1", 16, separate=True), "train")
    assert whole.fingerprint != parted.fingerprint
    for i in range(len(parted)):
        sample, ids = parted[i], parted[i].input_ids
        following = np.concatenate([ids[1:], whole[i].labels[-1:]])
        # Tokens count up inside a document and jump between documents, which are shuffled.
        jumps = np.flatnonzero(following != ids + 1)
        borders = sample.document_starts[1:] - 1
        assert sample.document_starts[0] == 0 and set(jumps) - {15} <= set(borders)
        assert (sample.labels[borders] == IGNORE_INDEX).all()
        rest = sample.labels != IGNORE_INDEX
        assert np.array_equal(sample.labels[rest], following[rest])
        assert np.array_equal(whole[i].labels, following)


@pytest.mark.parametrize(
    ("items", "names", "weights"),
    [
        (["0.3 {a} 0.7 {b}"], "ab", [0.3, 0.7]),
        (["3", "{a}", "7", "{b}"], "ab", [0.3, 0.7]),
        (["3 {a}", "7 {b}"], "ab", [0.3, 0.7]),
        (["{a}", "{b}"], "ab", [0.5, 0.5]),
        (["{a} {b}.idx"], "ab", [0.5, 0.5]),
        (["{folder}"], "abc", [1 / 3] * 3),
        (["1 {a} 0 {b}"], "a", [1.0]),
    ],
)
def test_blends_are_written_in_several_ways(folder, items, names, weights):
    places = {name: str(folder / name) for name in "abc"}
    made = blend.parse([item.format(folder=folder, **places) for item in items])
    assert made.prefixes == tuple(places[name] for name in names)
    assert made.weights == pytest.approx(weights)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["0.3 {a} {b}"], "has no weight, but others have"),
        (["{b} 0.3 {a}"], "has no weight, but others have"),
        (["0.3 {a} 0.7"], "no corpus follows the weight 0.7"),
        (["0.3 0.7 {a} {b}"], "no corpus follows the weight 0.3"),
        (["-1 {a} 2 {b}"], "must be finite and at least 0"),
        (["nan {a}"], "must be finite and at least 0"),
        (["0 {a} 0 {b}"], "are all 0"),
        (["{a}x"], "ax.idx is missing"),
        (["{a} {a}"], "a is given twice; give it once, with the sum of the weights"),
        (["{a} {folder}/./a.bin"], r"a is given twice, also as .*a"),
        ([], "no corpus is given"),
        (["{empty}"], "holds no corpus"),
    ],
)
def test_blends_that_do_not_fit_are_refused(folder, tmp_path, items, message):
    places = {name: str(folder / name) for name in "abc"}
    with pytest.raises(DataError, match=message):
        blend.parse([item.format(empty=tmp_path, folder=folder, **places) for item in items])


def test_splits_without_documents_or_tokens_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="a has no documents for valid: 50 documents are split by 1"):
        open_split(SampleSpec([str(folder / "a")], "1", 16), "valid", 1)
    with pytest.raises(DataError, match="are too few for a sample of 5000 tokens"):
        open_split(SampleSpec([str(folder / "a")], "1", 5000), "train")
    with pytest.raises(DataError, match="2 corpora need a number of samples"):
        open_split(SampleSpec([str(folder / "a"), str(folder / "b")], "1", 16), "train")
    write(tmp_path / "f", dtype="f4")
    with pytest.raises(DataError, match="holds float32, not token ids"):
        open_split(SampleSpec([str(tmp_path / "f")], "1", 2), "train", 1)


def test_few_tokens_are_repeated_until_a_sample_is_full(folder):
    samples = open_split(SampleSpec([str(folder / "a")], "1", 5000), "train", 2)
    assert len(samples[1].input_ids) == 5000


def test_an_id_that_the_model_does_not_know_is_refused(folder):
    samples = open_split(SampleSpec([str(folder / "a")], "1", 16), "train", 4, vocab=10000)
    with pytest.raises(DataError, match="holds the id 1.*the model has 10000 tokens"):
        samples[0]


def test_an_id_below_zero_is_refused(tmp_path):
    write(tmp_path / "a", [[3, -1, 4] * 9], np.int32)
    with pytest.raises(DataError, match="holds the id -1, but the model has 8 tokens"):
        open_split(SampleSpec([str(tmp_path / "a")], "1", 16), "train", 1, vocab=8)[0]
