"""The adapter to PaddleNLP's tokenizer classes, wired to a module that stands in for the real one."""

import importlib.util
import json
import sys

import pytest

from llmctl import tokenizers
from llmctl.errors import MissingDependencyError, TokenizerError

MODULE = '''
import json
from pathlib import Path


class WordTokenizer:
    """Words as tokens, as far as the adapter asks; names of special tokens in a text are found, as PaddleNLP does."""

    def __init__(self, names):
        self.names, self.all_special_tokens = names, ["<s>", "</s>"]

    @classmethod
    def from_pretrained(cls, folder):
        return cls(json.loads((Path(folder) / "words.json").read_text()))

    def save_pretrained(self, folder):
        (Path(folder) / "words.json").write_text(json.dumps(self.names))

    def __len__(self):
        return len(self.names)

    def __call__(self, text, add_special_tokens=True):
        spaced = text
        for name in self.all_special_tokens:
            spaced = spaced.replace(name, f" {name} ")
        ids = [self.convert_tokens_to_ids(word) for word in spaced.split()]
        return {"input_ids": [0, *ids] if add_special_tokens else ids}

    def convert_tokens_to_ids(self, name):
        return self.names.index(name) if name in self.names else 2

    def convert_ids_to_tokens(self, token):
        return self.names[token]

    def decode(self, ids, skip_special_tokens):
        return " ".join(self.names[i] for i in ids if not (skip_special_tokens and i < 2))
'''
WORDS = ["<s>", "</s>", "<unk>", "a", "hello", "world", "<|user|>"]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "words.json").write_text(json.dumps(WORDS))
    config = {"tokenizer_class": "WordTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def paddlenlp(tmp_path, monkeypatch):
    package = tmp_path / "path" / "paddlenlp" / "transformers"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    yield
    for name in ("paddlenlp", "paddlenlp.transformers"):
        sys.modules.pop(name, None)


def test_a_class_that_only_paddlenlp_has_reads_the_folder(folder, paddlenlp, tmp_path):
    tokenizer = tokenizers.load(folder)
    assert tokenizer.encode("hello world") == [0, 4, 5] and tokenizer.decode([0, 4, 5, 1]) == "hello world"
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (0, (1,), 7)
    assert 1 not in tokenizer.encode("hello </s>")
    assert tokenizer.encode("hello</s>", parse_special=True) == [0, 4, 1]
    saved = tmp_path / "saved"
    saved.mkdir()
    tokenizer.save(saved)
    again = tokenizers.load(saved)
    assert again.encode("hello world") == [0, 4, 5] and again.special == tokenizer.special


def test_a_class_that_paddlenlp_lacks_is_named(folder, paddlenlp):
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "NoTokenizer"}')
    with pytest.raises(TokenizerError, match="names the tokenizer NoTokenizer, which paddlenlp.transformers does not"):
        tokenizers.load(folder)


def test_a_folder_that_the_class_cannot_read_is_named(folder, paddlenlp):
    (folder / "words.json").unlink()
    with pytest.raises(TokenizerError, match="WordTokenizer of PaddleNLP cannot read .*words.json"):
        tokenizers.load(folder)


@pytest.mark.skipif(importlib.util.find_spec("paddlenlp") is not None, reason="PaddleNLP is installed")
def test_without_paddlenlp_the_extra_is_named(folder):
    with pytest.raises(MissingDependencyError, match=r"WordTokenizer.*pip install 'paddle-llmctl\[paddlenlp\]'"):
        tokenizers.load(folder)
