"""Tokenizers in GGUF files: what is written is read back as the same tokenizer."""

import json

import numpy as np
import pytest
from kit import tiny_tokenizers

from llmctl import plugins, tokenizers
from llmctl.checkpoint.gguf import vocabulary
from llmctl.errors import CheckpointError, UnsupportedError

CARD = plugins.load("llama").card
KEY = vocabulary.KEY
TEXTS = (
    *tokenizers.PROBES,
    "",
    "the quick brown fox",
    " hello  world ",
    "<|user|>hello<|bot|>",
    "</s>",
    "zzz<0x41>\n\n",
)


def again(folder, target, change=(), rows=400, card=CARD):
    """The tokenizer of a folder after it was in a file; ``change`` overrides metadata."""
    found = {**vocabulary.metadata_of(folder, card, rows), **dict(change)}
    target.mkdir()
    for name, content in vocabulary.files_of(target, found, card).items():
        (target / name).write_bytes(content)
    return tokenizers.load(target, card=card)


@pytest.mark.parametrize("kind", ["json", "sentencepiece"])
def test_the_same_tokens_come_back(tmp_path, kind):
    folder = tiny_tokenizers.KINDS[kind](tmp_path / "a", chat_template="{{ messages[0].content }}")
    one, other = tokenizers.load(folder, card=CARD), again(folder, tmp_path / "b")
    for text in TEXTS:
        assert other.encode(text) == one.encode(text), text
        assert other.decode(one.encode(text)) == one.decode(one.encode(text)), text
        assert other.encode(text, False) == one.encode(text, False)
    for name in ("bos_id", "eos_id", "prefix", "suffix"):
        assert getattr(other.special, name) == getattr(one.special, name)
    assert set(tiny_tokenizers.ROLES) <= set(other.special.ids)
    assert other.vocab_size == 400 and other.chat_template is not None


def test_words_are_split_as_the_card_says(tmp_path):
    """Qwen2's expression, under its name in GGUF."""
    card = plugins.load("qwen2").card
    folder = tiny_tokenizers.write_json(tmp_path / "a")
    content = json.loads((folder / "tokenizer.json").read_text())
    cut = {"type": "Split", "pattern": {"Regex": card.gguf.words["qwen2"]}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [cut, byte_level]}
    content["normalizer"] = {"type": "NFC"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert vocabulary.metadata_of(folder, card, 400)[KEY + "pre"] == "qwen2"
    one, other = tokenizers.load(folder, card=card), again(folder, tmp_path / "b", card=card)
    assert [one.encode(text) for text in TEXTS] == [other.encode(text) for text in TEXTS]
    with pytest.raises(
        UnsupportedError, match="splits text by .* expression, for which GGUF has no name that is known for llama"
    ):
        vocabulary.metadata_of(folder, CARD, 400)


def test_files_without_a_tokenizer_have_none():
    assert vocabulary.files_of(None, {KEY + "model": "no_vocab"}, CARD) == {}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({KEY + "model": "bert"}, UnsupportedError, "a tokenizer of the kind 'bert'"),
        (
            {KEY + "pre": "other"},
            UnsupportedError,
            "pre='other', which is not read for llama; read are default, gpt-2, smollm, tekken, llama-bpe",
        ),
        ({KEY + "merges": ["a b c"]}, CheckpointError, "merges are no pairs"),
        ({KEY + "tokens": ["a"]}, CheckpointError, "tokens and .*token_type do not fit"),
        ({KEY + "eos_token_id": 400}, CheckpointError, "eos_token_id=400 is none of 400 tokens"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(tmp_path, change, error, message):
    folder = tiny_tokenizers.write_json(tmp_path / "a")
    with pytest.raises(error, match=message):
        again(folder, tmp_path / "b", change)


def test_scores_must_be_those_of_the_tokens(tmp_path):
    folder = tiny_tokenizers.write_sentencepiece(tmp_path / "a")
    with pytest.raises(CheckpointError, match="scores are not as many"):
        again(folder, tmp_path / "b", {KEY + "scores": np.zeros(3, np.float32)})
    with pytest.raises(UnsupportedError, match="and the embeddings 5 rows"):
        vocabulary.metadata_of(folder, CARD, 5)


def test_files_that_do_not_tell_how_words_are_split_are_read_by_the_card_with_a_warning(tmp_path):
    qwen = plugins.load("qwen2").card
    folder = tiny_tokenizers.write_json(tmp_path / "a")
    found = vocabulary.metadata_of(folder, qwen, 400)
    del found[KEY + "pre"]
    merged = json.loads(vocabulary.files_of(tmp_path, found, qwen)["tokenizer.json"])
    assert merged["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] == qwen.tokens.pattern
    with pytest.warns(UserWarning, match="does not tell how it splits text into words"):
        vocabulary.files_of(tmp_path, found, CARD)


def test_words_of_single_digits_are_those_of_the_original_pre_tokenizer():
    from tokenizers import Regex, pre_tokenizers

    byte_level = {"add_prefix_space": False, "trim_offsets": True}
    original = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(**byte_level, use_regex=True)]
    split = pre_tokenizers.Split(Regex(vocabulary.WORDS["smollm"]), "isolated")
    ours = [split, pre_tokenizers.ByteLevel(**byte_level, use_regex=False)]
    for text in (*TEXTS, "a 12  34\n5 6", "it's 2x\t 7", "  8 you'll 9²", "1", " \n "):
        assert pre_tokenizers.Sequence(ours).pre_tokenize_str(text) == pre_tokenizers.Sequence(
            original
        ).pre_tokenize_str(text)


def test_tokenizers_whose_digits_are_single_are_not_written_under_another_name(tmp_path):
    folder = tiny_tokenizers.write_json(tmp_path / "a")
    content = json.loads((folder / "tokenizer.json").read_text())
    digits = {"type": "Digits", "individual_digits": True}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, content["pre_tokenizer"]]}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UnsupportedError, match=r"splits text by \['Digits'\] expression"):
        vocabulary.metadata_of(folder, CARD, 400)


@pytest.mark.parametrize("words, begun", [("llama-bpe", True), ("tekken", True), ("smollm", False), ("gpt-2", False)])
def test_where_files_do_not_say_texts_begin_as_llama_cpp_begins_them(tmp_path, words, begun):
    found = vocabulary.metadata_of(tiny_tokenizers.write_json(tmp_path / "a"), CARD, 400) | {KEY + "pre": words}
    del found[KEY + "add_bos_token"]
    config = json.loads(vocabulary.files_of(tmp_path, found, CARD)["tokenizer_config.json"])
    assert config["add_bos_token"] is begun


def test_special_tokens_of_the_card_follow_the_pieces(tmp_path):
    """As llama.cpp's conversion writes ChatGLM3: roles under other names, then the tokens of the card."""
    card = plugins.load("chatglm2").card
    optional = card.tokens.optional
    folder = tiny_tokenizers.write_sentencepiece(tmp_path / "a", additional_special_tokens=list(optional))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["added_tokens_decoder"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    one = tokenizers.load(folder, card=card)
    found = vocabulary._of_pieces(folder / "tokenizer.model")
    tokens, kinds = found[KEY + "tokens"], found[KEY + "token_type"]
    tokens[1:3] = "<bos>", "<eos>"
    rest = [*card.tokens.appended, *optional, "[PAD]"]
    found[KEY + "tokens"], found[KEY + "token_type"] = [*tokens, *rest], [*kinds, *[vocabulary.CONTROL] * len(rest)]
    found[KEY + "scores"] = [*found[KEY + "scores"], *[0.0] * len(rest)]
    found |= {KEY + "eos_token_id": 2, KEY + "add_bos_token": False}
    (target := tmp_path / "b").mkdir()
    for name, content in vocabulary.files_of(target, found, card).items():
        (target / name).write_bytes(content)
    other = tokenizers.load(target, card=card)
    for text in (*TEXTS, "<|user|>\nhello<|assistant|>"):
        assert other.encode(text) == one.encode(text) and other.encode(text, False) == one.encode(text, False), text
    assert {**other.special.ids, "<s>": 1} == {**one.special.ids, "<bos>": 1}
    assert other.special.prefix == one.special.prefix
    assert other.special.eos_id == 2
