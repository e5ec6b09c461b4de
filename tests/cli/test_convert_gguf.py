"""``llmctl convert --to gguf``: files that answer as the model that they were made of, and options that do not fit."""

import json

import pytest
from kit.model_cli import ASK, STARTER, llmctl


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_file_answers_as_its_model_and_becomes_a_folder_again(tmp_path):
    file = tmp_path / "starter.gguf"
    out, _ = llmctl("convert", STARTER, file, "--to", "gguf")
    assert f"{file} written: llama as GGUF, weights BF16" in out
    expected = llmctl("generate", STARTER, *ASK)[0]
    assert llmctl("generate", file, *ASK)[0] == expected
    assert llmctl("generate", file, *ASK, "--engine", "dynamic")[0] == expected
    llmctl("convert", file, tmp_path / "folder", "--to", "hf")
    assert llmctl("generate", tmp_path / "folder", *ASK)[0] == expected
    assert llmctl("chat", file, "--max-new-tokens", "4", stdin="Hello\n/quit\n")[0]


def test_codes_run_on_the_fused_engine_and_become_floats_elsewhere(tmp_path):
    file = tmp_path / "starter.gguf"
    facts = json.loads(llmctl("convert", STARTER, file, "--to", "gguf", "--dtype", "q8_0", "--json")[0])
    assert (facts["weights"], facts["bytes"]) == ("Q8_0", file.stat().st_size)
    assert llmctl("generate", file, *ASK)[0] == llmctl("generate", STARTER, *ASK)[0]
    llmctl("convert", file, tmp_path / "floats", "--to", "hf", "--dtype", "float16")
    floats = llmctl("generate", tmp_path / "floats", *ASK, "--engine", "dynamic")[0]
    assert llmctl("generate", file, *ASK, "--engine", "dynamic")[0] == floats


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["m.gguf", "--to", "hf", "--dtype", "q4_0"], "--dtype q4_0 is a type of GGUF files; add --to gguf"),
        (["m.bin", "--to", "gguf"], "must be a file with the ending .gguf"),
        (["m.gguf", "--to", "gguf", "--max-shard-size", "1MB"], "--to gguf writes one file of a whole model"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, words, message):
    assert message in llmctl("convert", STARTER, tmp_path / words[0], *words[1:], code=2)[1]


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF\3\0\0\0")
    assert "m.gguf ends within its header; it is truncated" in llmctl("generate", tmp_path / "m.gguf", *ASK, code=2)[1]
