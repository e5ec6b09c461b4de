"""``llmctl data``: corpora from texts, whatever the number of processes; joined, inspected, indexed; clear refusals."""

import gzip
import json
from pathlib import Path

import pytest
from kit.data_cli import run
from kit.data_files import WRITERS

from llmctl import tokenizers
from llmctl.data.corpus import documents
from llmctl.data.corpus.indexed import Corpus

MODEL = Path(__file__).resolve().parents[2] / "plugins" / "llama" / "llmctl_llama" / "starter" / "model"


def build(*arguments, **settings):
    return run("build", *arguments, "--tokenizer", MODEL, **settings)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.load(MODEL)


def texts(prefix, tokenizer):
    corpus = Corpus(prefix)
    return [tokenizer.decode(corpus.document(i), skip_special=False) for i in range(corpus.documents)]


def test_text_files_are_split_at_blank_lines_or_taken_whole(tmp_path, tokenizer):
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_bytes("\ufeffMia likes\nto eat pears.\n\n \n\nLeo likes cheese.\n".encode())
    (tmp_path / "in" / "deeper" / "b.txt").write_text("Ann lives in Rome.\n")
    (tmp_path / "in" / "readme.rst").write_text("not read")
    said = build(tmp_path / "in", "--output", tmp_path / "out")
    assert texts(tmp_path / "out", tokenizer) == ["Mia likes\nto eat pears.", "Leo likes cheese.", "Ann lives in Rome."]
    assert "3 documents" in said and "as uint16" in said and "tokens/s" in said and "--append-eos" in said
    build(tmp_path / "in", "--output", tmp_path / "whole", "--documents", "files", "--append-eos")
    eos = tokenizer.decode([tokenizer.eos_id], skip_special=False)
    assert texts(tmp_path / "whole", tokenizer) == [
        f"Mia likes\nto eat pears.\n\n \n\nLeo likes cheese.\n{eos}", f"Ann lives in Rome.\n{eos}"
    ]  # fmt: skip


def test_json_lines_give_their_keys_and_empty_ones_are_counted(tmp_path, tokenizer):
    rows = [{"title": "Mia", "text": "Mia likes pears."}, {"title": "", "text": " "}, {"title": "", "text": "Leo."}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = build(tmp_path / "a.jsonl", "--output", tmp_path / "a", "--key", "title", "--key", "text")
    assert texts(tmp_path / "a", tokenizer) == ["Mia\n\nMia likes pears.", "Leo."]
    assert "1 empty documents left out" in said


def test_the_ids_are_those_of_the_tokenizer_without_its_begin_token(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("Mia likes pears.\n")
    build(tmp_path / "a.txt", "--output", tmp_path / "a", "--append-eos")
    expected = [*tokenizer.encode("Mia likes pears.", add_special=False), tokenizer.eos_id]
    assert Corpus(tmp_path / "a").document(0).tolist() == expected
    assert tokenizer.encode("x")[0] == tokenizer.bos_id != expected[0]


def test_the_result_does_not_depend_on_the_number_of_processes(tmp_path, monkeypatch):
    from llmctl.data.corpus import build as corpus

    monkeypatch.setattr(corpus, "BATCH_BYTES", 200)
    lines = "".join(json.dumps({"text": f"{name} likes {thing}." if n % 7 else ""}) + "\n"
                    for n, (name, thing) in enumerate((a, b) for a in "ABCDEFGHIJ" for b in "klmnopqrst"))  # fmt: skip
    (tmp_path / "a.jsonl").write_text(lines)
    said = [build(tmp_path / "a.jsonl", "--output", tmp_path / f"by-{n}", "--workers", n) for n in (1, 2)]
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"by-1{suffix}").read_bytes() == (tmp_path / f"by-2{suffix}").read_bytes()
    assert all("85 documents" in text and "15 empty" in text for text in said)


def test_bad_lines_are_listed_before_anything_is_written(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "good"}\n{"text": 3}\n{"txet": "x"}\n\xff\n{"text": "x"\n{"text": "\\ude00"}'
    )
    said = build(tmp_path / "a.jsonl", "--output", tmp_path / "a", code=2)
    for part in (
        "5 problems",
        "a.jsonl:2: 'text' must be a string, not a number",
        "a.jsonl:3: no key 'text'; did you mean 'txet'?",
        "a.jsonl:4: not valid UTF-8",
        "a.jsonl:5: not valid JSON",
        "a.jsonl:6: \\ude00 is half of a surrogate pair",
        "--skip-bad",
    ):
        assert part in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    said = build(tmp_path / "a.jsonl", "--output", tmp_path / "a", "--skip-bad")
    assert "warning: left out: 5 problems" in said and ": 1 documents" in said


def test_a_corpus_may_be_named_by_one_of_its_files(tmp_path):
    (tmp_path / "a.txt").write_text("Mia likes pears.\n")
    assert f"{tmp_path / 'a'}.bin and .idx" in build(tmp_path / "a.txt", "--output", tmp_path / "a.bin")
    run("merge", tmp_path / "a", "--output", tmp_path / "b.idx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx", "a.txt", "b.bin", "b.idx"]
    assert "1 documents" in run("inspect", tmp_path / "b.bin")


def test_a_corpus_has_a_name(tmp_path):
    (tmp_path / "a.txt").write_text("Mia likes pears.\n")
    assert "is a folder; give a prefix in it" in build(tmp_path / "a.txt", "--output", f"{tmp_path}/corpora/", code=2)


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ({}, ["missing"], "missing does not exist"),
        ({"a.log": "x"}, ["a.log"], "the suffix must be one of .jsonl"),
        ({"in/a.log": "x"}, ["in"], "in has no file with the suffix"),
        ({"a.txt": "x"}, ["a.txt", "a.txt"], "a.txt is given twice"),
        ({"a.txt": " \n"}, ["a.txt"], "all documents are empty"),
        ({"a.txt": "x", "out.idx": ""}, ["a.txt"], "out.idx already exists"),
    ],
)
def test_input_that_cannot_be_used_is_refused(tmp_path, monkeypatch, files, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert message in build(*arguments, "--output", "out", code=2)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(files)


@pytest.mark.assets
def test_a_known_text_has_the_published_number_of_tokens(tmp_path, assets):
    """301,966 and 36,059 tokens: what nanoGPT reports for the two parts of this text; its border splits no token."""
    said = run("build", assets / "data" / "tinyshakespeare.txt", "--documents", "files", "--output", tmp_path / "a",
               "--tokenizer", assets / "tokenizers" / "gpt2")  # fmt: skip
    assert "1 documents, 338,025 tokens as uint16 (50,257 ids)" in said


@pytest.fixture
def corpora(tmp_path):
    for name, word in (("a", "pears"), ("b", "cheese")):
        lines = "".join(f"Mia likes {word} and {'very ' * n}much more.\n\n" for n in range(20))
        (tmp_path / f"{name}.txt").write_text(lines)
        build(tmp_path / f"{name}.txt", "--output", tmp_path / name)
    return tmp_path


def test_corpora_are_merged_and_inspected(corpora):
    assert "40 documents" in run("merge", corpora / "a", corpora / "b", "--output", corpora / "m")
    facts = json.loads(run("inspect", corpora / "m", "--json"))
    assert facts["documents"] == 40 and facts["dtype"] == "uint16" and facts["bytes"] == 2 * facts["tokens"]
    assert facts["shortest"]["document"] == 0 and facts["longest"]["document"] == 19
    assert "longest: document 19 with" in run("inspect", corpora / "m")
    text = run("inspect", corpora / "m", "--doc", "20", "--tokenizer", MODEL)
    assert text == "Mia likes cheese and much more.\n"
    ids = [int(word) for word in run("inspect", corpora / "m", "--doc", "20").split()]
    assert ids == Corpus(corpora / "b").document(0).tolist()
    assert "no document 40" in run("inspect", corpora / "m", "--doc", "40", code=2)


def test_indices_are_built_ahead_and_found_again(corpora):
    arguments = ["index", "-c", f"0.3 {corpora / 'a'} 0.7 {corpora / 'b'}", "--split", "8,2", "--seq-length", "16"]
    said = run(*arguments, "--train", "100", "--valid", "10")
    assert "train: 100 samples of 16 tokens" in said and "valid: 10 samples" in said and "30 samples" in said
    kept = {path: path.stat().st_mtime_ns for path in (corpora / "index-cache").rglob("*.npy")}
    # Documents, starts and order of two corpora in two splits, and from which corpus each sample of a split comes.
    assert len(kept) == 2 * 2 * 3 + 2 * 2
    run(*arguments, "--train", "100", "--valid", "10")
    assert {path: path.stat().st_mtime_ns for path in (corpora / "index-cache").rglob("*.npy")} == kept
    run(*arguments[:1], "-c", corpora / "a", "--split", "1", "--seq-length", "16", "--cache", corpora / "elsewhere")
    assert len(list((corpora / "elsewhere").rglob("*.npy"))) == 3


def test_help_needs_neither_numpy_nor_paddle(run_llmctl):
    for arguments in (["--help"], ["build", "--help"], ["doctor", "--help"]):
        probe = "print([m for m in ('numpy', 'paddle', 'rich') if m in sys.modules], file=sys.stderr)"
        done = run_llmctl("data", *arguments, probe=probe)
        assert done.returncode == 0 and "[]" in done.stderr, done.stderr


def test_building_does_not_need_paddle(tmp_path, run_llmctl):
    (tmp_path / "a.txt").write_text("Mia likes pears.\n")
    done = run_llmctl("data", "build", "a.txt", "--output", "a", "--tokenizer", str(MODEL), cwd=tmp_path,
                      probe="assert 'paddle' not in sys.modules")  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("no-suffix", "lines.txt")])
def test_documents_of_every_kind_of_file_are_the_same(tmp_path, name):
    rows = [{"title": f"Mia {number}", "text": "Mia likes pears.\nTom does not."} for number in range(3)]
    (tmp_path / "a").mkdir()
    WRITERS[name](tmp_path / "a" / name, rows)
    found = documents.DocumentFiles(documents.find([tmp_path / "a"]), ("title", "text"))
    assert [document.text for document in found.documents()] == [f"{row['title']}\n\n{row['text']}" for row in rows]
    assert not documents.check(found) and found.nbytes > 0


def test_texts_may_be_compressed_and_begin_as_json_does(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"[Mia] likes pears.\n\nTom does not.\n"))
    found = documents.DocumentFiles(documents.find([tmp_path]))
    assert [document.text for document in found.documents()] == ["[Mia] likes pears.", "Tom does not."]
