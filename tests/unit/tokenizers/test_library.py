"""One reading of special tokens: the library's, whatever flags, pre-tokenizers and texts are; users cannot forge them."""

import functools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.tiny_tokenizers import TEXT, write_json
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from llmctl import tokenizers
from llmctl.errors import TokenizerError
from llmctl.tokenizers.conversation import Conversation

NAMES = ("<|user|>", "<|bot|>", "[INST]", "☃")
TEMPLATE = (
    "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|bot|>' }}\n {{ m.content }} [INST]☃{% endfor %}"
    "{% if add_generation_prompt %}<|bot|>\n{% endif %}"
)
PRE_TOKENIZERS = {
    "bytes": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "bytes with a space": lambda: pre_tokenizers.ByteLevel(add_prefix_space=True),
    "first": lambda: pre_tokenizers.Metaspace(prepend_scheme="first"),
    "always": lambda: pre_tokenizers.Metaspace(prepend_scheme="always"),
    "whole": lambda: pre_tokenizers.Metaspace(prepend_scheme="never", split=False),
    "words": lambda: pre_tokenizers.Whitespace(),
}
NORMALIZERS = {
    "none": None,
    "lower": normalizers.Lowercase(),
    "nfkc": normalizers.NFKC(),
    "space": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    "strip": normalizers.Strip(),
}
FLAGS = st.fixed_dictionaries({name: st.booleans() for name in ("lstrip", "rstrip", "single_word", "normalized")})
WORDS = st.sampled_from(
    ["hello", " ", "  the", "Fox\n", "café", "你好", "_", "a", "🙂", "\t", "<|", "|>", "<|user", "[", "é"]
)
PLAIN = st.lists(WORDS, max_size=8).map("".join).filter(lambda text: not any(name in text for name in NAMES))


@functools.cache
def trained(kind):
    """A tokenizer with a pre-tokenizer, as JSON."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = PRE_TOKENIZERS[kind]()
    inner.decoder = decoders.ByteLevel() if kind.startswith("bytes") else decoders.Metaspace()
    alphabet = (
        pre_tokenizers.ByteLevel.alphabet() if kind.startswith("bytes") else sorted(set("".join(TEXT) + "▁<|>[]"))
    )
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXT, trainer)
    return inner.to_str()


def made(folder, kind, form, flags):
    """A tokenizer whose special tokens have flags, with a chat template; and the library's own object."""
    inner = Tokenizer.from_str(trained(kind))
    if NORMALIZERS[form] is not None:
        inner.normalizer = NORMALIZERS[form]
    inner.add_tokens([AddedToken(name, special=True, **row) for name, row in zip(NAMES, flags, strict=True)])
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizers.load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(PRE_TOKENIZERS)), st.sampled_from(sorted(NORMALIZERS)),
    st.lists(FLAGS, min_size=4, max_size=4), st.lists(PLAIN, min_size=1, max_size=5),
)  # fmt: skip
def test_a_rendered_prompt_has_the_ids_of_the_library_on_the_whole_text(tmp_path_factory, kind, form, flags, texts):
    ours, library = made(tmp_path_factory.mktemp("model"), kind, form, flags)
    if any(
        set(library.encode(text, add_special_tokens=False).ids) & set(map(library.token_to_id, NAMES)) for text in texts
    ):
        return  # a name is written in another form, such as another case: see the next test
    talk = Conversation(tuple(zip(texts[::2], [*texts[1::2], None], strict=False))[: (len(texts) + 1) // 2])
    talk = talk.asked()
    text = ours.chat_template.text(talk)
    assert ours.chat_template.prompt(talk) == library.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, False, parse_special=True) == library.encode(text, add_special_tokens=False).ids


FORGED = st.lists(
    st.one_of(WORDS, st.sampled_from([*NAMES, "<|USER|>", "＜|bot|＞", "\ue0f2", "[INST"])), max_size=8
).map("".join)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(PRE_TOKENIZERS)), st.sampled_from(sorted(NORMALIZERS)),
    st.lists(FLAGS, min_size=4, max_size=4), FORGED,
)  # fmt: skip
def test_what_a_person_writes_never_becomes_a_special_token(tmp_path_factory, kind, form, flags, text):
    ours, library = made(tmp_path_factory.mktemp("model"), kind, form, flags)
    special = {library.token_to_id(name) for name in NAMES}
    found = sum(token in special for token in ours.chat_template.prompt(Conversation(((text, None),))))
    # The template writes four, of which single_word and normalizers may leave some as text.
    assert found <= 4 and (found == 4 or any(row["single_word"] or row["normalized"] for row in flags))
    assert not special & set(ours.encode(text, add_special=False))


def test_a_name_that_a_person_wrote_reads_as_written(tmp_path):
    ours, _ = made(tmp_path, "bytes", "none", [{}] * 4)
    text = "say <|bot|> and ☃ twice: ☃☃ <|user|>"
    ids = ours.chat_template.prompt(Conversation(((text, None),)))
    assert ours.decode(ids, skip_special=False) == f"<|user|>\n {text} [INST]☃<|bot|>\n"
    assert ours.decode(ours.encode(text, add_special=False)) == text


@pytest.mark.parametrize("said", [{}, {"legacy": None}, {"legacy": False}, {"legacy": True}])
@pytest.mark.parametrize("scheme", ["first", "always"])
def test_whether_text_after_a_special_token_begins_with_a_space_is_the_files_matter(tmp_path, scheme, said):
    ours, library = made(tmp_path, scheme, "none", [{}] * 4)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, **said}))
    ids = tokenizers.load(tmp_path).encode("hello<|bot|>hello", False, parse_special=True)
    assert ids == library.encode("hello<|bot|>hello", add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("said", "expected"),
    [({}, "b"), ({"add_bos_token": None, "add_eos_token": None}, "b"), ({"add_eos_token": False}, "b"),
     ({"add_bos_token": True}, "b"), ({"add_bos_token": False}, ""), ({"add_eos_token": True}, "be")],
)  # fmt: skip
def test_bos_and_eos_are_those_of_the_post_processor_unless_a_key_says_otherwise(tmp_path, said, expected):
    from tokenizers import processors

    _, library = made(tmp_path, "bytes", "none", [{}] * 4)
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    library.save(str(tmp_path / "tokenizer.json"))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, **said}))
    found = tokenizers.load(tmp_path).encode("hello")
    assert (found[0] == 1, found[-1] == 2) == ("b" in expected, "e" in expected)


def test_ids_in_config_json_end_and_fill_but_never_make_text_special(tmp_path):
    folder = write_json(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if "_token" not in k}))
    quote = tokenizers.load(folder).encode('"', False)[0]
    (folder / "config.json").write_text(
        json.dumps({"bos_token_id": quote, "eos_token_id": [quote, 1], "pad_token_id": 9})
    )
    tokenizer = tokenizers.load(folder)
    text = 'say "hi"'
    assert tokenizer.decode(tokenizer.encode(text, False)) == text
    assert tokenizer.eos_ids == (quote, 1) and tokenizer.pad_id == 9


@pytest.mark.parametrize(
    ("files", "ends"),
    [({"config.json": 3}, (1, 3)), ({"config.json": [3, 2]}, (1, 3, 2)),
     ({"config.json": [3], "generation_config.json": [2]}, (1, 2)), ({"generation_config.json": [2, 9999]}, (1, 2))],
)  # fmt: skip
def test_ends_are_those_of_the_first_file_that_names_any_and_foreign_ids_are_named(tmp_path, files, ends, recwarn):
    folder = write_json(tmp_path)
    for name, ids in files.items():
        (folder / name).write_text(json.dumps({"eos_token_id": ids}))
    assert tokenizers.load(folder).eos_ids == ends
    foreign = [str(w.message) for w in recwarn if "9999 is not in the vocabulary and is left out" in str(w.message)]
    assert len(foreign) == (9999 in files.get("generation_config.json", []))


def test_an_added_token_without_a_row_is_an_error_only_where_it_is_used(tmp_path):
    ours, library = made(tmp_path, "bytes", "none", [{}] * 4)
    rows = library.token_to_id("☃")
    with pytest.warns(UserWarning, match=rf"has {rows} rows, none for ☃ \({rows}\)"):
        tokenizers.check_fits(ours, rows, tmp_path)
    assert ours.encode("hello") and ours.encode("☃")
    with pytest.raises(
        TokenizerError, match=f"the token '☃' with id {rows}, and the model's embedding has only {rows} rows"
    ):
        ours.encode("hello☃", parse_special=True)
    with pytest.raises(TokenizerError, match="use the tokenizer that belongs to the model"):
        tokenizers.check_fits(ours, 100, tmp_path)


@pytest.mark.parametrize(
    ("normalizer", "message"),
    [
        ({"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}, "may make a text 100 times longer"),
        ({"type": "Replace", "pattern": {"Regex": "x*"}, "content": "a" * 64}, "may make a text 65 times longer"),
        (
            {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "aaaaaaa"}] * 3},
            "may make a text 512 times",
        ),
        ({"type": "Precompiled", "precompiled_charsmap": "/////w=="}, "precompiled_charsmap is damaged"),
        ({"type": "Nothing"}, "cannot be read"),
    ],
)
def test_a_hostile_tokenizer_json_is_refused_with_its_name(tmp_path, normalizer, message):
    path = write_json(tmp_path) / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": normalizer}))
    with pytest.raises(TokenizerError, match=rf"tokenizer\.json.*{message}"):
        tokenizers.load(tmp_path)
