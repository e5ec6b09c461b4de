"""Conversion between layouts: bit-equal there and back, strict, resumable; and the Python call that loads either."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import llmctl
from llmctl import plugins
from llmctl.checkpoint import convert as conversion
from llmctl.checkpoint.hf_config import read_config
from llmctl.errors import CheckpointError, ConfigError
from llmctl.io import atomic

STARTER = plugins.load("llama").folder / "starter" / "model"


def opened(folder, family="auto"):
    config = read_config(folder)
    plugin = plugins.resolve(family, config, "config.json")
    return conversion.open_source(Path(folder), plugin, plugin.card.dims_from_config(config))


def tensors(folder):
    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "np") as content:
            for name in content.keys():  # noqa: SIM118
                part = content.get_slice(name)
                found[name] = (part.get_dtype(), tuple(part.get_shape()))
    bits = {n: opened_bits(folder, n) for n in found}
    return {name: (*found[name], bits[name]) for name in found}


def opened_bits(folder, name):
    from llmctl.checkpoint.folder import open_folder

    info = open_folder(folder).tensors[name]
    return Path(info.file).read_bytes()[info.offset : info.offset + info.nbytes]


def test_there_and_back_is_bit_equal(tmp_path):
    assert conversion.convert(opened(STARTER), tmp_path / "own", "native", max_shard_bytes=300_000)
    names = set(tensors(tmp_path / "own"))
    assert "llama.layers.0.self_attn.q_proj.weight" in names and len(list((tmp_path / "own").glob("model-*"))) > 2
    assert opened(tmp_path / "own").layout == "native"
    conversion.convert(opened(tmp_path / "own"), tmp_path / "back", "hf")
    assert tensors(tmp_path / "back") == tensors(STARTER)


@pytest.mark.assets
@pytest.mark.parametrize("kind", ["goldens", "goldens_remote"])
def test_every_family_of_the_assets_survives_there_and_back(assets, tmp_path, kind):
    for case in sorted((assets / kind).iterdir()):
        source = opened(case)
        conversion.convert(source, tmp_path / case.name / "own", "native")
        conversion.convert(opened(tmp_path / case.name / "own"), tmp_path / case.name / "back", "hf")
        back = opened(tmp_path / case.name / "back")
        for name, tensor in source.state.items():
            assert tensor.numpy().tobytes() == back.state[name].numpy().tobytes(), (case.name, name)
        given, made = source.folder.tensors, back.folder.tensors
        assert all(made[name].shape == given[name].shape for name in made), case.name


def test_the_native_layout_gives_the_same_logits_and_text(tmp_path):
    import paddle

    conversion.convert(opened(STARTER), tmp_path / "own", "native")
    (model, tokenizer), (same, _) = llmctl.load(STARTER), llmctl.load(tmp_path / "own")
    ids = paddle.to_tensor([tokenizer.encode("Tell me of it")])
    np.testing.assert_array_equal(model(ids).numpy(), same(ids).numpy())


def test_the_same_again_is_not_written_twice_and_something_else_is_not_overwritten(tmp_path):
    target = tmp_path / "own"
    assert conversion.convert(opened(STARTER), target, "native")
    assert not conversion.convert(opened(STARTER), target, "native")
    with pytest.raises(CheckpointError, match="already exists and is not this conversion"):
        conversion.convert(opened(STARTER), target, "native", dtype="float32")
    assert conversion.convert(opened(STARTER), target, "native", dtype="float32", overwrite=True)
    assert {dtype for dtype, _, _ in tensors(target).values()} == {"F32"}
    assert json.loads((target / "config.json").read_text())["torch_dtype"] == "float32"


def test_an_interrupted_conversion_goes_on_with_the_same_bytes(tmp_path):
    def dying(limit):
        written = []

        def progress(amount):
            written.append(amount)
            if len(written) == limit:
                raise KeyboardInterrupt

        return progress

    whole, target = tmp_path / "whole", tmp_path / "target"
    conversion.convert(opened(STARTER), whole, "native", max_shard_bytes=300_000)
    with pytest.raises(KeyboardInterrupt):
        conversion.convert(opened(STARTER), target, "native", max_shard_bytes=300_000, progress=dying(12))
    assert not target.exists()
    finished = {file: file.stat().st_mtime_ns for file in tmp_path.glob(".target.converting-*/model-*.safetensors")}
    assert finished
    conversion.convert(opened(STARTER), target, "native", max_shard_bytes=300_000)
    assert {file.name: file.read_bytes() for file in whole.iterdir()} == {
        file.name: file.read_bytes() for file in target.iterdir()
    }
    assert all((target / file.name).stat().st_mtime_ns == time for file, time in finished.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target", "whole"]


def test_two_conversions_do_not_write_one_folder_at_once(tmp_path):
    with conversion._working_folder(tmp_path / "own", "f" * 32) as work:
        assert work.parent == tmp_path
        with pytest.raises(CheckpointError, match="another process is writing .*own; wait for it to finish"):
            with conversion._working_folder(tmp_path / "own", "f" * 32):
                pass


def test_the_manifest_describes_the_files(tmp_path):
    import hashlib

    conversion.convert(opened(STARTER), tmp_path / "own", "native")
    manifest = json.loads((tmp_path / "own" / "manifest.json").read_text())
    row = manifest["files"]["model.safetensors"]
    content = (tmp_path / "own" / "model.safetensors").read_bytes()
    assert (row["bytes"], row["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert (manifest["family"], manifest["layout"]) == ("llama", "native")


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_a_release_without_the_prefix_is_read(tmp_path, prefix):
    plugin = plugins.load("gpt3")
    dims = plugin.card.dims_of("gpt2", layers=1, hidden=8, heads=2, vocab=16, max_positions=8)
    (tmp_path / "config.json").write_text(json.dumps(plugin.card.config_from_dims(dims)))
    rng = np.random.default_rng(0)
    values = {
        t.torch_name.replace("transformer.", prefix): rng.normal(size=t.shape).astype("f4")
        for t in plugin.card.expand(dims)
    }
    save_file(values, tmp_path / "model.safetensors")
    state = opened(tmp_path).state
    np.testing.assert_array_equal(state["gpt.wte.weight"].numpy(), values[prefix + "wte.weight"])


def test_values_that_are_not_finite_are_found(tmp_path):
    folder = shutil.copytree(STARTER, tmp_path / "model")
    info = opened(folder).state["llama.norm.weight"].sources[0][0]
    with open(info.file, "r+b") as stream:
        stream.seek(info.offset)
        stream.write(b"\xff\xff\xff\xff")
    assert conversion.verify(opened(folder)) == ["llama.norm.weight"]
    assert conversion.verify(opened(STARTER)) == []


def test_a_folder_with_an_adapter_is_refused(tmp_path):
    folder = shutil.copytree(STARTER, tmp_path / "model")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds a model and an adapter"):
        opened(folder)
    with pytest.raises(CheckpointError, match="holds a model and an adapter"):
        llmctl.load(folder)


def test_a_bit_that_flipped_after_the_conversion_is_found(tmp_path):
    conversion.convert(opened(STARTER), tmp_path / "own", "native", max_shard_bytes=300_000)
    assert conversion.verify(opened(tmp_path / "own")) == []
    shard = sorted((tmp_path / "own").glob("model-*"))[1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(
        CheckpointError, match="is damaged or was changed: the content of model-00002.* is not what was written"
    ):
        conversion.verify(opened(tmp_path / "own"))


def test_another_tokenizer_is_another_conversion(tmp_path):
    source = shutil.copytree(STARTER, tmp_path / "model")
    conversion.convert(opened(source), tmp_path / "own", "native")
    (source / "generation_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="already exists and is not this conversion"):
        conversion.convert(opened(source), tmp_path / "own", "native")


def test_weights_that_do_not_fit_are_refused_before_a_layer_is_built(tmp_path):
    folder = shutil.copytree(STARTER, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 10**12}))
    with pytest.raises(CheckpointError, match="model.embed_tokens.weight is .*, expected .1000000000000"):
        llmctl.load(folder)
    with pytest.raises(ConfigError, match="dtype='int8' is not supported; choose float32 or float64"):
        llmctl.load(STARTER, dtype="int8")


def test_the_source_is_not_its_own_target():
    with pytest.raises(CheckpointError, match="is both source and target"):
        conversion.convert(opened(STARTER), STARTER, "native", overwrite=True)


def test_recordings_beside_a_model_stay_where_they_are(tmp_path):
    golden = Path(__file__).resolve().parents[3] / "plugins/llama/tests/goldens/llama_bias"
    conversion.convert(opened(golden), tmp_path / "own", "native")
    assert {file.name for file in (tmp_path / "own").iterdir()} == {"config.json", "manifest.json", "model.safetensors"}
    shutil.copytree(STARTER, tmp_path / "plain")
    (tmp_path / "plain" / "case.json").write_text("{}")
    conversion.convert(opened(tmp_path / "plain"), tmp_path / "target", "native")
    assert (tmp_path / "target" / "case.json").is_file()


def test_a_head_that_is_tied_without_saying_so_is_explained(tmp_path):
    golden = Path(__file__).resolve().parents[3] / "plugins/llama/tests/goldens/llama_tied"
    shutil.copytree(golden, tmp_path / "tied")
    config = json.loads((golden / "config.json").read_text())
    assert config.pop("tie_word_embeddings") is True
    (tmp_path / "tied" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"1 tensor missing: lm_head\.weight \(config\.json has no tie_word_embedd"
    ):
        opened(tmp_path / "tied")
    (tmp_path / "tied" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(CheckpointError, match=r"1 tensor missing: lm_head\.weight$"):
        opened(tmp_path / "tied")


class Killed(BaseException):
    """Ends a conversion where ``kill -9`` would."""


@pytest.mark.parametrize("moment", ["os.replace", "_exchange", "_remove", "_sync"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_killed_overwrite_leaves_the_old_or_the_new_model_and_can_be_repeated(tmp_path, monkeypatch, moment, when):
    target = tmp_path / "target"
    conversion.convert(opened(STARTER), target, "native", max_shard_bytes=300_000)
    (target / "old.txt").write_text("of the old model")
    old = tensors(target)
    owner, name = (os, "replace") if moment == "os.replace" else (atomic, moment)
    real = getattr(owner, name)

    def killing(*arguments):
        if when == "after":
            real(*arguments)
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(owner, name, killing)
        conversion.convert(opened(STARTER), target, "hf", overwrite=True)
    assert tensors(target) in (old, tensors(STARTER))
    conversion.convert(opened(STARTER), target, "hf", overwrite=True)
    assert tensors(target) == tensors(STARTER) and not (target / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_conversion_takes_nothing_from_the_previous_model_that_a_killed_one_left(tmp_path):
    target = tmp_path / "target"
    work = tmp_path / f".target.converting-{conversion._fingerprint(opened(STARTER), 'hf', 'keep', 5_000_000_000)[:12]}"
    (work / "folder").mkdir(parents=True)
    (work / "old.txt").write_text("of the old model")
    (work / "model.safetensors").write_bytes(b"of the old model")
    conversion.convert(opened(STARTER), target, "hf")
    assert tensors(target) == tensors(STARTER)
    assert not (target / "old.txt").exists() and not (target / "folder").exists()
