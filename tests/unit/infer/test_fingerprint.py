"""The fingerprint of a model: the same for what answers the same, another one for what does not."""

import shutil

import numpy as np
import pytest
from kit.paths import STARTER

from llmctl.infer import fingerprint as module
from llmctl.infer.fingerprint import fingerprint, with_adapter
from llmctl.infer.options import EngineOptions
from llmctl.infer.select import open_backend
from llmctl.io.digest import SAMPLE, SAMPLES, sample_of_files
from llmctl.testing.tiny import write_adapter


def of(folder, engine="fused", **options):
    return fingerprint(open_backend(folder, "auto", EngineOptions(**options)), engine)


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(STARTER / "model", tmp_path / "copy")


def test_copies_and_options_without_effect_on_answers_have_one_fingerprint(model):
    (model / "README.md").write_text("A model.")
    (model / ".cache").write_text("x")
    found = of(STARTER / "model")
    assert len(found) == 10 and int(found, 16) >= 0
    assert found == of(model) == of(model, batch_size=2, speculate=3, cache_memory="1MB")


def test_what_decides_answers_changes_it(model, monkeypatch):
    found = [of(model), of(model, weights="int8"), of(model, weights="int8", group=32), of(model, kv="int8")]
    found += [of(model, "dynamic")]
    for name, value in (("__version__", "9.9"), ("version_of", lambda name: "9.9")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            found.append(of(model))
    with monkeypatch.context() as patch:
        patch.setattr(module.native, "level", lambda: "other")
        found.append(of(model))
    config = model / "generation_config.json"
    config.write_text(config.read_text().replace("{", '{"top_k": 3, ', 1))
    found.append(of(model))
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    found.append(of(model))
    assert len({*found}) == len(found)


def test_an_adapter_for_every_prompt_and_one_of_several_count(tmp_path):
    for seed in (1, 2):
        write_adapter(tmp_path / str(seed), STARTER / "model", seed)
    name, sample = of(STARTER / "model"), sample_of_files(tmp_path / "1")
    folders = [of(STARTER / "model", adapter=tmp_path / str(seed)) for seed in (1, 2)]
    assert len({name, *folders, with_adapter(name, sample)}) == 4
    assert of(tmp_path / "1") == folders[0] and with_adapter(name, "") == name


def test_samples_of_a_large_file_reach_all_of_its_parts(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, 5 * SAMPLES * SAMPLE, dtype=np.uint8)
    file = tmp_path / "weights"
    seen = set()
    for begin in (None, 0, len(data) // 3, len(data) // 2, len(data) - 1):
        changed = data.copy()
        if begin is not None:
            changed[begin : begin + len(data) // SAMPLES] ^= 1
        changed.tofile(file)
        seen.add(sample_of_files(tmp_path))
    assert len(seen) == 5
    file.rename(tmp_path / "other")
    assert sample_of_files(tmp_path) not in seen
