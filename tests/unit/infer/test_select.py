"""Which engine runs a folder, what the choice tells, and that nothing is printed or loaded by it."""

import json
import shutil

import pytest
from kit.model_cli import STARTER

from llmctl.errors import ConfigError, UnsupportedError
from llmctl.infer.executors import native
from llmctl.infer.handle import DynamicHandle, FusedHandle, PackedHandle
from llmctl.infer.loader import Packing, packed_model
from llmctl.infer.options import EngineOptions
from llmctl.infer.packed.folder import save_packed
from llmctl.infer.select import open_backend
from llmctl.infer.text.generator import TextRequest, generator_of
from llmctl.testing.tiny import write_adapter


def outputs(handle, length=None):
    tokenizer = handle.tokenizer()
    loaded = handle.load(tokenizer, [length])
    request = TextRequest(tokenizer.encode("Deny this: Tom lives in Rome."))
    return loaded, generator_of(loaded.backend, loaded.max_positions, tokenizer, handle.options).generate([request])[
        0
    ].text


def test_the_fused_engine_is_taken_where_it_can(capsys):
    handle = open_backend(STARTER)
    assert isinstance(handle, FusedHandle) and (handle.engine, handle.notes, handle.adapters) == ("fused", (), ())
    assert handle.vocab == json.loads((STARTER / "config.json").read_text())["vocab_size"] and handle.prefix_lm is None
    loaded, text = outputs(handle)
    assert (loaded.engine, loaded.max_positions, loaded.notes) == ("fused", 512, ())
    by_layer = open_backend(STARTER, "llama", EngineOptions(engine="dynamic"))
    assert isinstance(by_layer, DynamicHandle) and outputs(by_layer)[1] == text != ""
    assert capsys.readouterr() == ("", "")


def test_the_reason_for_another_engine_is_a_note(monkeypatch, capsys):
    monkeypatch.setattr(native, "available", lambda: False)
    handle = open_backend(STARTER)
    (note,) = handle.notes
    assert handle.engine == "dynamic" and note.startswith("engine: dynamic (there are no compiled kernels: ")
    assert note.endswith("engine='fused' runs it by paddle's operations)")
    with pytest.raises(UnsupportedError, match="^kv needs the fused engine: there are no compiled kernels"):
        open_backend(STARTER, options=EngineOptions(kv="int8"))
    assert capsys.readouterr() == ("", "")


def test_requests_that_outgrow_fixed_rope_frequencies_go_to_the_layer(tmp_path):
    shutil.copytree(STARTER, tmp_path / "model")
    config = json.loads((STARTER / "config.json").read_text())
    scaling = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 40}
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, **scaling}))
    handle = open_backend(tmp_path / "model")
    loaded = handle.load(handle.tokenizer(), [60])
    assert handle.engine == "fused" and loaded.engine == "dynamic" and "may pass 40 tokens" in loaded.notes[0]
    assert handle.load(handle.tokenizer(), [30]).engine == handle.load(handle.tokenizer(), [None]).engine == "fused"
    handle = open_backend(tmp_path / "model", options=EngineOptions(kv="int8"))
    with pytest.raises(UnsupportedError, match="kv needs the fused engine: prompt and answer may pass 40 tokens"):
        handle.load(handle.tokenizer(), [60])


def test_a_packed_folder_tells_the_names_of_its_adapters(tmp_path):
    source = open_backend(STARTER).source
    model = packed_model(source.folder, source.plugin, source.dims, Packing(kind="int8"))
    save_packed(model, tmp_path / "packed", source.folder, source.plugin)
    first, second = (write_adapter(tmp_path / name, STARTER, seed) for seed, name in enumerate(("first", "second")))
    named = open_backend(tmp_path / "packed", options=EngineOptions(adapter={"a": first, "b": second}))
    assert isinstance(named, PackedHandle) and (named.adapters, named.default_adapter) == (("a", "b"), -1)
    single = open_backend(tmp_path / "packed", options=EngineOptions(adapter=first))
    assert (single.adapters, single.default_adapter) == ((), 0)
    assert outputs(single)[1] == outputs(open_backend(first, options=EngineOptions(base=tmp_path / "packed")))[1]
    with pytest.raises(ConfigError, match="weights has no effect on a packed model"):
        open_backend(tmp_path / "packed", options=EngineOptions(weights="int4"))


def test_a_cache_holds_sequences_of_any_length_as_far_as_its_memory_goes():
    handle = open_backend(STARTER, options=EngineOptions(cache_memory="200KB"))
    loaded = handle.load(handle.tokenizer(), [None] * 4)
    assert 16 <= loaded.max_positions < 512
