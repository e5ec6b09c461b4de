"""Tokens added to a model: old rows and answers stay, new rows are means, every family, every kind of tokenizer file."""

import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from kit.tiny_tokenizers import write_json, write_sentencepiece, write_vocabulary

from llmctl import plugins, tokenizers
from llmctl.card.tiny import tiny_dims
from llmctl.checkpoint import convert, resize
from llmctl.checkpoint.build import check_model
from llmctl.checkpoint.folder import open_folder
from llmctl.checkpoint.formats.dtypes import widen
from llmctl.errors import TokenizerError
from llmctl.testing.tiny import write_model
from llmctl.tokenizers.additions import NewToken, add_to_files

FAMILIES = sorted(found.name for found in plugins.installed())
NEW = ["Blorp", "<think>"]


def made(folder, family, rows=None, write=write_json, **dims):
    """A tiny model of a family with a tokenizer, and its plugin."""
    plugin = plugins.load(family)
    write(folder)
    if family == "chatglm":
        names = ("[gMASK]", "<sop>", "<eop>")  # its card needs them
        add_to_files(folder, [NewToken(name, 320 + index, special=True) for index, name in enumerate(names)])
    known = tokenizers.load(folder, "none").vocab_size
    write_model(folder, plugin, tiny_dims(plugin.card, {"vocab": rows or known, **dims}))
    return plugin


def grow(folder, target, plugin, tokens=NEW, special=()):
    """The folder grown into another; returns what was planned."""
    model = check_model(folder, plugin.card.name)
    growth = resize.plan(plugin.card, model.dims, tokenizers.load(folder, "none", plugin.card), tokens, special)
    target.mkdir()
    resize.write(convert.open_source(folder, plugin, model.dims), growth, target, 10**9)
    return growth


def by_vocabulary(folder, plugin, dims):
    """Name -> rows for tokens of every tensor that has such rows."""
    weights, renames = open_folder(folder), plugin.hooks.weight_map(card=plugin.card, dims=dims, source="torch")
    sources = {mapping.target: mapping.source for mapping in renames}
    return {
        tensor.name: np.moveaxis(weights.read(sources[tensor.name]), weights.tensors[sources[tensor.name]].shape.index(dims.vocab), 0)
        for tensor in plugin.card.expand(dims)
        if any("vocab" in axis.symbols for axis in tensor.param.axes)
    }  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_its_rows_and_gets_their_mean(tmp_path, family):
    plugin = made(tmp_path / "old", family)
    growth = grow(tmp_path / "old", tmp_path / "new", plugin)
    old, new = (check_model(tmp_path / name, family) for name in ("old", "new"))
    assert new.dims.vocab == old.dims.vocab + 2 == growth.rows
    before, after = (by_vocabulary(m.folder, plugin, m.dims) for m in (old, new))
    assert before.keys() == after.keys() and len(before) == (1 if old.dims.tied else 2)
    for name, rows in before.items():
        np.testing.assert_array_equal(after[name][: len(rows)], rows)
        np.testing.assert_allclose(
            after[name][len(rows) :], np.tile(rows.astype("f8").mean(0), (2, 1)), rtol=1e-6, atol=1e-8
        )
    if family != "chatglm":  # its tokens that end a prompt have ids beyond a small vocabulary
        ids = paddle.to_tensor([[5, 9, 11, 300]])
        layers = [model.layer() for model in (old, new)]
        for layer in layers:
            layer.eval()
        logits = [layer(ids).numpy() for layer in layers]
        np.testing.assert_allclose(logits[1][..., : old.dims.vocab], logits[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("write", [write_json, write_vocabulary, write_sentencepiece])
def test_tokens_are_in_the_files_of_every_kind_of_tokenizer(tmp_path, write):
    plugin = made(tmp_path / "old", "llama", write=write)
    growth = grow(tmp_path / "old", tmp_path / "new", plugin, [*NEW, "<|call|>"], ["<|call|>"])
    tokenizer = tokenizers.load(tmp_path / "new", "none", plugin.card)
    first = growth.known
    assert [token.id for token in growth.tokens] == [first, first + 1, first + 2]
    ids = tokenizer.encode("hello Blorp<think>world", add_special=False)
    assert [token for token in ids if token >= first] == [first, first + 1]
    assert tokenizer.decode([first, first + 2]) == "Blorp" and "<|call|>" in tokenizer.special.ids
    assert first + 2 not in tokenizer.encode("a <|call|>", add_special=False)
    assert first + 2 in tokenizer.encode("a <|call|>", add_special=False, parse_special=True)
    old = tokenizers.load(tmp_path / "old", "none", plugin.card)
    assert tokenizer.encode("hello token") == old.encode("hello token")


def test_rows_beyond_the_tokenizer_are_used_first(tmp_path):
    plugin = made(tmp_path / "old", "llama", rows=512)
    growth = grow(tmp_path / "old", tmp_path / "new", plugin)
    old, new = (check_model(tmp_path / name) for name in ("old", "new"))
    assert new.dims.vocab == 512 and growth.known < 510
    before, after = (by_vocabulary(m.folder, plugin, m.dims) for m in (old, new))
    for name, rows in before.items():
        ids = [token.id for token in growth.tokens]
        np.testing.assert_allclose(
            after[name][ids], np.tile(rows[: growth.known].astype("f8").mean(0), (2, 1)), rtol=1e-5, atol=1e-8
        )
        others = np.setdiff1d(np.arange(512), ids)
        np.testing.assert_array_equal(after[name][others], rows[others])


@pytest.mark.parametrize(
    ("old", "known", "needed", "rows"),
    [
        (320, 320, 322, 322),
        (320, 320, 320, 320),
        (384, 320, 385, 512),
        (151936, 151665, 152000, 152064),
        (321, 320, 322, 322),
    ],
)
def test_a_padded_vocabulary_stays_padded(old, known, needed, rows):
    assert resize._rows(old, known, needed) == rows


def test_half_types_keep_their_type_and_get_the_rounded_mean(tmp_path):
    plugin = made(tmp_path / "wide", "llama")
    dims = check_model(tmp_path / "wide").dims
    convert.convert(convert.open_source(tmp_path / "wide", plugin, dims), tmp_path / "old", "hf", "bfloat16")
    growth = grow(tmp_path / "old", tmp_path / "new", plugin)
    table = open_folder(tmp_path / "new").tensors["model.embed_tokens.weight"]
    rows = widen(table.read())
    assert table.dtype == "bfloat16"
    np.testing.assert_allclose(rows[growth.known], rows[: growth.known].astype("f8").mean(0), atol=2**-8 * 0.1)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [(["a", "a b", "a b"], "'a' cannot be added: the tokenizer in .* has it"), (["x y", "x y"], "it is given twice"),
     ([" "], "it is empty"), (["<|user|>"], "has it; leave it out")],
)  # fmt: skip
def test_tokens_that_cannot_be_added_are_named(tmp_path, tokens, message):
    plugin = made(tmp_path / "old", "llama")
    with pytest.raises(TokenizerError, match=message):
        grow(tmp_path / "old", tmp_path / "new", plugin, tokens)


def test_facts_that_were_derived_from_the_vocabulary_stay(tmp_path):
    golden = Path(__file__).resolve().parents[3] / "plugins/llama/tests/goldens/baichuan2_13b"
    plugin = plugins.load("baichuan")
    made(tmp_path / "old", "baichuan", norm_head=True)
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    assert json.loads((golden / "config.json").read_text())["norm_head"] is config["norm_head"] is True
    grow(tmp_path / "old", tmp_path / "new", plugin)
    assert check_model(tmp_path / "new").dims.norm_head is True


def test_a_token_without_a_row_gets_one_under_its_own_id(tmp_path):
    plugin = made(tmp_path / "old", "llama")
    rows = check_model(tmp_path / "old").dims.vocab
    add_to_files(tmp_path / "old", [NewToken("<pad>", rows, special=True), NewToken("Blorp", rows + 1)])
    old = tokenizers.load(tmp_path / "old", "none")
    growth = grow(tmp_path / "old", tmp_path / "new", plugin, ["Blorp", "<think>"])
    assert [(token.text, token.id) for token in growth.tokens] == [("Blorp", rows + 1), ("<think>", rows + 2)]
    new = check_model(tmp_path / "new")
    before, after = (by_vocabulary(m.folder, plugin, m.dims) for m in (check_model(tmp_path / "old"), new))
    for name, table in before.items():
        np.testing.assert_allclose(
            after[name][rows:], np.tile(table.astype("f8").mean(0), (3, 1)), rtol=1e-5, atol=1e-8
        )
    tokenizer = tokenizers.load(tmp_path / "new", "none")
    assert new.dims.vocab == rows + 3 and tokenizer.vocab_size == rows + 3
    assert tokenizer.encode("a Blorp") == old.encode("a Blorp")
