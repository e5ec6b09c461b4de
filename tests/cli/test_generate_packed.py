"""``llmctl generate`` on a packed folder with adapters: the answers of packing at load, and adapters of other bases refused."""

import hashlib
import json

import numpy as np
import pytest
from kit.model_cli import ASK, STARTER, llmctl, rows_of, write_questions

from llmctl import plugins
from llmctl.adapters import folder as folders
from llmctl.adapters.folder import open_adapter
from llmctl.adapters.prefix import Prefix, shape_of
from llmctl.checkpoint.hf_config import read_config
from llmctl.infer.packed.folder import FORMAT, HEADER
from llmctl.infer.random_model import write_random
from llmctl.testing.tiny import write_adapter


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The starter in 8 bits."""
    folder = tmp_path_factory.mktemp("packed") / "int8"
    llmctl("export", STARTER, "--engine", "fused", "--weights", "int8", "--output", folder)
    return folder


def test_lines_choose_among_adapters_beside_a_packed_folder(packed, tmp_path):
    first, second = (write_adapter(tmp_path / name, STARTER, seed) for seed, name in enumerate(("first", "second")))
    other = tmp_path / "of-paddlenlp"
    opened = open_adapter(second)
    other.mkdir()
    folders.write(other, opened.adapter, opened.plugin, opened.dims, layout="native")
    file, names = write_questions(tmp_path / "in.jsonl"), [None, "a", "b"]
    lines = [{**row, **({"adapter": names[i % 3]} if i % 3 else {})} for i, row in enumerate(rows_of(file))]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--max-new-tokens", "8", "--logprobs", "1", "--input", file]
    named = ["--adapter", f"a={first}", "--adapter", f"b={other}"]
    at_load = ["--adapter", f"a={first}", "--adapter", f"b={second}"]
    expected = llmctl("generate", STARTER, "--weights", "int8", *at_load, *words)[0]
    assert llmctl("generate", packed, *named, *words)[0] == expected
    plain = llmctl("generate", packed, "--max-new-tokens", "8", "--input", write_questions(tmp_path / "plain.jsonl"))[0]
    outputs = [[json.loads(line)["output"] for line in text.splitlines()] for text in (expected, plain)]
    assert outputs[0][0] == outputs[1][0] and outputs[0][1:3] != outputs[1][1:3]


def test_an_adapter_without_a_name_is_for_every_prompt(packed, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", STARTER, 0)
    file = write_questions(tmp_path / "named.jsonl", adapter="a")
    words = ["--max-new-tokens", "8", "--input"]
    expected = llmctl("generate", STARTER, "--weights", "int8", "--adapter", f"a={adapter}", *words, file)[0]
    found = llmctl("generate", packed, "--adapter", adapter, *words, write_questions(tmp_path / "in.jsonl"))[0]
    outputs = [[json.loads(line)["output"] for line in text.splitlines()] for text in (expected, found)]
    assert outputs[0] == outputs[1]
    for more in ([], ["--beams", "2"], ["--speculate", "3"]):
        assert llmctl("generate", packed, "--adapter", adapter, *ASK, *more) != llmctl("generate", packed, *ASK, *more)
    expected = llmctl("generate", packed, "--adapter", adapter, *ASK)
    assert llmctl("generate", adapter, "--base", packed, *ASK) == expected
    assert "given are: none" in llmctl("generate", packed, "--adapter", adapter, *words, file, code=2)[1]


def test_virtual_tokens_go_before_the_prompts_of_a_packed_folder(packed, tmp_path):
    found = open_adapter(write_adapter(tmp_path / "adapter", STARTER))
    values = np.random.default_rng(0).normal(size=shape_of(found.dims, 3)).astype("float32")
    prefix = Prefix(values, base=str(STARTER), record=found.adapter.record)
    (tmp_path / "prefix").mkdir()
    folders.write(tmp_path / "prefix", prefix, found.plugin, found.dims)
    for more in ([], ["--batch-size", "1"], ["--speculate", "2"]):
        expected = llmctl("generate", STARTER, "--weights", "int8", "--adapter", tmp_path / "prefix", *ASK, *more)
        assert llmctl("generate", packed, "--adapter", tmp_path / "prefix", *ASK, *more) == expected
    assert expected != llmctl("generate", packed, *ASK)


def test_an_adapter_of_another_base_is_refused_unless_it_is_wanted(packed, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    config = read_config(STARTER)
    plugin = plugins.load("llama")
    write_random(other, plugin, plugin.card.dims_from_config(config, "config.json"))
    adapter = write_adapter(tmp_path / "adapter", other, 0)
    for put in (adapter, f"a={adapter}"):
        told = [llmctl("generate", model, "--adapter", put, *ASK, code=2)[1] for model in (packed, STARTER)]
        assert told[0] == told[1].replace(str(STARTER), str(packed))
        assert "has the shapes of the adapter's base but other weights" in told[0]
    knowingly = llmctl("generate", packed, "--adapter", adapter, "--allow-other-base", *ASK)[0]
    assert knowingly != llmctl("generate", packed, *ASK)[0]
    (adapter / folders.RECORD).unlink()
    assert llmctl("generate", packed, "--adapter", adapter, *ASK)[0] == knowingly


def test_an_adapter_over_a_quantised_base_is_sent_to_packing(packed, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", STARTER, 0, "nf4")
    for put in (adapter, f"a={adapter}"):
        assert "export --engine fused --adapter" in llmctl("generate", packed, "--adapter", put, *ASK, code=2)[1]


def test_a_folder_of_an_earlier_release_has_to_be_packed_again(packed, tmp_path):
    header = json.loads((packed / HEADER).read_text())
    header = {**{name: header[name] for name in header if name not in ("base", "sha256")}, "format": FORMAT - 1}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
    (tmp_path / HEADER).write_text(json.dumps({**header, "sha256": digest}))
    assert f"reads format {FORMAT} with layout" in llmctl("generate", tmp_path, *ASK, code=2)[1]
