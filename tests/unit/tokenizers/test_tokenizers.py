"""Tokenizers: recorded ids, round trips, streams, special tokens that text cannot forge, saving and loading."""

import json
import shutil

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.tiny_tokenizers import KINDS, ROLES, write_json, write_sentencepiece, write_vocabulary

from llmctl import tokenizers
from llmctl.errors import TokenizerError


@pytest.fixture(scope="module", params=sorted(KINDS))
def tiny(request, tmp_path_factory):
    return tokenizers.load(KINDS[request.param](tmp_path_factory.mktemp(request.param)))


def streamed(tokenizer, ids, **options):
    stream = tokenizer.stream(**options)
    pieces = [stream.add(token) for token in ids]
    return [*pieces, stream.finish()]


@pytest.mark.assets
@pytest.mark.parametrize(("name", "vectors"), [
    ("llama2", "vectors"), ("llama2", "tokens"), ("mistral", "tokens"), ("gpt2", "vectors"),
])  # fmt: skip
def test_ids_equal_the_recorded_ones_and_decode_to_the_text(assets, tmp_path, name, vectors):
    # The recordings are of the oldest file; tokenizer.json of llama2 and mistral puts no space before a text.
    for file in (assets / "tokenizers" / name).iterdir():
        if name == "gpt2" or file.name != "tokenizer.json":
            (tmp_path / file.name).symlink_to(file)
    tokenizer = tokenizers.load(tmp_path)
    rows = json.loads((assets / "tokenizers" / name / f"{vectors}.json").read_text())
    assert len(rows) >= 17
    for row in rows:
        assert tokenizer.encode(row["text"], add_special=False) == row["ids"], row["text"]
        assert tokenizer.decode(row["ids"]) == row["text"]
        assert "".join(streamed(tokenizer, row["ids"])) == row["text"]


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40))
def test_text_survives_and_streams_as_it_decodes(tiny, text):
    ids = tiny.encode(text, add_special=False)
    assert tiny.decode(ids) == text.replace("\u2581", " ")
    pieces = streamed(tiny, ids)
    assert "".join(pieces) == tiny.decode(ids)
    for piece in pieces[:-1]:
        assert not piece.endswith("\ufffd")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_ids_stream_as_they_decode(tiny, data):
    ids = data.draw(st.lists(st.integers(0, tiny.vocab_size - 1), max_size=30))
    assert "".join(streamed(tiny, ids)) == tiny.decode(ids)
    assert "".join(streamed(tiny, ids, skip_special=False)) == tiny.decode(ids, skip_special=False)


def test_a_character_of_several_tokens_comes_out_whole(tiny):
    ids = tiny.encode("😀a", add_special=False)
    pieces = [piece for piece in streamed(tiny, ids) if piece]
    assert len(ids) > len(pieces) and "".join(pieces) == "😀a" and any("😀" in piece for piece in pieces)


def test_names_of_special_tokens_in_text_are_text_unless_asked_for(tiny):
    role = tiny.special.ids[ROLES[0]]
    text = f"a {ROLES[0]} </s>"
    plain = tiny.encode(text, add_special=False)
    assert role not in plain and tiny.eos_id not in plain and tiny.decode(plain) == text
    parsed = tiny.encode(text, add_special=False, parse_special=True)
    assert role in parsed and parsed[-1] == tiny.eos_id
    assert ROLES[0] not in tiny.decode(parsed) and ROLES[0] in tiny.decode(parsed, skip_special=False)


def test_bos_is_added_as_configured(tmp_path):
    for kind, write in KINDS.items():
        plain = tokenizers.load(write(tmp_path / f"{kind}0", add_bos_token=False))
        both = tokenizers.load(write(tmp_path / f"{kind}1", add_bos_token=True, add_eos_token=True))
        assert plain.encode("a") == plain.encode("a", add_special=False)
        assert both.encode("a") == [both.bos_id, *plain.encode("a"), both.eos_id]


def test_text_that_continues_gets_no_leading_space(tmp_path):
    tokenizer = tokenizers.load(write_sentencepiece(tmp_path))
    first, second = tokenizer.encode("hello", False), tokenizer.encode(" world", False, start=False)
    assert tokenizer.decode([*first, *second]) == "hello world"
    assert tokenizer.encode("hello", False, start=False) != first


def test_end_tokens_are_gathered_from_all_files(tmp_path):
    folder = write_json(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 2]}')
    tokenizer = tokenizers.load(folder)
    assert tokenizer.eos_id == 1 and tokenizer.eos_ids == (1, 3, 2)


@pytest.mark.assets
def test_older_files_give_the_same_ids_as_tokenizer_json(assets, tmp_path):
    source = assets / "tokenizers" / "gpt2"
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(source / name, tmp_path / name)
    (tmp_path / "config.json").write_text('{"bos_token_id": 50256, "eos_token_id": 50256}')
    tokenizer = tokenizers.load(tmp_path)
    for row in json.loads((source / "vectors.json").read_text()):
        assert tokenizer.encode(row["text"]) == row["ids"] and tokenizer.decode(row["ids"]) == row["text"]
    assert tokenizer.eos_ids == (50256,) and tokenizer.vocab_size == 50257
    assert tokenizer.decode([*tokenizer.encode("a <|endoftext|>"), 50256]) == "a <|endoftext|>"


def test_older_files_add_bos_only_where_it_is_asked_for(tmp_path):
    folder = write_vocabulary(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["add_bos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokenizers.load(folder).encode("hello") == tokenizers.load(folder).encode("hello", add_special=False)


def test_added_tokens_of_older_files_must_follow_the_vocabulary(tmp_path):
    size = tokenizers.load(write_vocabulary(tmp_path / "0")).vocab_size
    added = {str(size): {"content": "<a>", "special": True}, str(size + 1): {"content": "<b>", "special": False}}
    tokenizer = tokenizers.load(write_vocabulary(tmp_path / "1", added_tokens_decoder=added))
    assert tokenizer.encode("<a><b>", add_special=False)[-1] == size + 1
    assert tokenizer.decode([size, size + 1]) == "<b>" and tokenizer.vocab_size == size + 2
    with pytest.raises(TokenizerError, match="the added token '<b>' cannot have the id"):
        tokenizers.load(write_vocabulary(tmp_path / "2", added_tokens_decoder={str(size + 1): added[str(size + 1)]}))


def test_a_special_token_that_sentencepiece_would_find_in_text_is_not_forged(tmp_path):
    tool = "<|tool|>"
    tokenizer = tokenizers.load(write_sentencepiece(tmp_path, [tool], additional_special_tokens=[tool]))
    ids = tokenizer.encode(f"say {tool} now", add_special=False)
    assert tokenizer.special.ids[tool] not in ids and tokenizer.decode(ids) == f"say {tool} now"
    assert tokenizer.special.ids[tool] in tokenizer.encode(tool, add_special=False, parse_special=True)


def test_saved_tokenizer_gives_the_same_ids(tiny, tmp_path):
    tiny.save(tmp_path)
    again = tokenizers.load(tmp_path)
    text = "hello café <s> 你好"
    assert again.encode(text) == tiny.encode(text) and again.special == tiny.special
    assert again.vocab_size == tiny.vocab_size


def test_tokenizer_json_comes_first_and_a_difference_is_told(tmp_path):
    write_sentencepiece(tmp_path)
    write_json(tmp_path)
    with pytest.warns(
        UserWarning, match="encode 8 of 8 probes differently, such as 'Hello world'; tokenizer.json is used"
    ):
        tokenizer = tokenizers.load(tmp_path)
    assert type(tokenizer).__name__ == "LibraryTokenizer"


@pytest.mark.parametrize("content", [b"IQ== 0\nIg== 1\n", b"nonsense"])
def test_a_tokenizer_model_that_is_no_sentencepiece_does_not_block_tokenizer_json(tmp_path, content):
    expected = tokenizers.load(write_json(tmp_path)).encode("hello world")
    (tmp_path / "tokenizer.model").write_bytes(content)
    assert tokenizers.load(tmp_path).encode("hello world") == expected


def test_a_rank_file_is_known_by_its_content(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(TokenizerError, match=r"tokenizer\.model does not say how text is cut into words"):
        tokenizers.load(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no tokenizer; looked for tokenizer.json, tokenizer.model, \\*.tiktoken, and vocab.json with merges"),
        ({"tokenizer.json": "{"}, r"tokenizer\.json.* is not valid JSON|tokenizer\.json cannot be read"),
        ({"tokenizer.json": "{}"}, r"tokenizer\.json cannot be read"),
        ({"vocab.json": "{}", "merges.txt": "#version: 0.2\na b c\n"}, r"merges\.txt must hold two tokens a line"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a b\n"}, r"vocab\.json and merges\.txt do not fit"),
        ({"tokenizer.model": "nonsense"}, r"tokenizer\.model is no sentencepiece model"),
    ],
)
def test_unreadable_tokenizer_is_named(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerError, match=message):
        tokenizers.load(tmp_path)


def test_a_token_that_begins_or_ends_texts_without_an_id_is_an_error_and_one_that_fills_is_left_out(tmp_path):
    with pytest.raises(TokenizerError, match="eos_token '<nothing>' has no id"):
        tokenizers.load(write_json(tmp_path, eos_token="<nothing>"))
    with pytest.warns(UserWarning, match="pad_token '<nothing>' has no id in the tokenizer and is left out"):
        tokenizer = tokenizers.load(write_json(tmp_path, pad_token="<nothing>"))
    assert tokenizer.special.pad_id is None and tokenizer.pad_id == tokenizer.eos_id


def test_a_tokenizer_without_a_longest_text_is_read_and_saved_as_transformers_writes_it(tmp_path):
    """transformers writes ``int(1e30)``, as Llama 2, Mistral and Gemma have it."""
    folder, saved = write_json(tmp_path / "model", model_max_length=int(1e30)), tmp_path / "saved"
    saved.mkdir()
    tokenizers.load(folder).save(saved)
    assert json.loads((saved / "tokenizer_config.json").read_text())["model_max_length"] == int(1e30)
    tokenizers.load(saved)


def test_a_sentencepiece_model_puts_no_space_before_a_text_where_the_folder_says_so(tmp_path):
    tokenizer = tokenizers.load(write_sentencepiece(tmp_path, add_prefix_space=False, legacy=False))
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in ("hello world", " hello", "the fox "):
        ids = tokenizer.encode(text, add_special=False)
        assert "".join(map(model.id_to_piece, ids)) == text.replace(" ", "\u2581")
        assert tokenizer.decode(ids) == text
