"""Models as PaddleNLP saves them: its config.json, its files, its logits; and what it needs to read ours."""

import json
from pathlib import Path

import numpy as np
import paddle
import pytest

from llmctl import plugins
from llmctl.checkpoint import convert as conversion
from llmctl.checkpoint.build import check_model, load_model
from llmctl.checkpoint.hf_config import normalize, with_paddlenlp_scaling
from llmctl.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
SAVED = ROOT / "tests" / "goldens" / "paddlenlp"


@pytest.mark.parametrize("name", ["llama", "llama_linear", "opt", "qwen2"])
def test_models_that_it_saved_give_its_logits(name):
    golden = np.load(SAVED / name / "golden.npz")
    model, _, plugin = load_model(SAVED / name)
    model.eval()
    assert plugin.card.name == name.partition("_")[0]
    np.testing.assert_allclose(model(paddle.to_tensor(golden["ids"])).numpy(), golden["logits"], atol=1e-5)


@pytest.mark.parametrize("layout", ["hf", "native"])
def test_its_scaling_is_written_in_both_spellings(tmp_path, layout):
    model = check_model(SAVED / "llama_linear")
    conversion.convert(
        conversion.open_source(SAVED / "llama_linear", model.plugin, model.dims), tmp_path / "made", layout
    )
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert (config["rope_scaling_type"], config["rope_scaling_factor"]) == ("linear", 2.0)
    assert check_model(tmp_path / "made").dims == model.dims


def test_scaling_of_hugging_face_is_written_for_it_too(tmp_path):
    golden = ROOT / "plugins/llama/tests/goldens/llama_rope_dynamic"
    model = check_model(golden)
    conversion.convert(conversion.open_source(golden, model.plugin, model.dims), tmp_path / "made", "native")
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert (config["rope_scaling_type"], config["rope_scaling_factor"]) == ("dynamic_ntk", 2.0)
    assert check_model(tmp_path / "made").dims == model.dims


def test_other_scaling_is_left_alone():
    for scaling in (None, {"rope_type": "yarn", "factor": 4.0}, {"rope_type": "default"}):
        config = {"rope_scaling": scaling}
        assert with_paddlenlp_scaling(config) == config
    assert normalize({"rope_scaling_type": None, "rope_scaling_factor": 1.0}) == {}


def test_keys_of_its_training_have_no_effect_in_its_files_only():
    card = plugins.load("llama").card
    config = card.config_from_dims(card.dims_of("llama2-7b"))
    keys = {"seq_length": 4096, "tensor_parallel_degree": 8, "virtual_pp_degree": 2, "tensor_parallel_output": True}
    for version in ("3.0.0b4", None):
        assert card.dims_from_config({**config, **keys, "paddlenlp_version": version}) == card.dims_of("llama2-7b")
    with pytest.raises(ConfigError, match="llama does not know seq_length=4096, tensor_parallel_degree=8"):
        card.dims_from_config({**config, **keys})
    for key, value in (("alibi", True), ("rope_scaling_type", "ntk")):
        with pytest.raises(ConfigError, match=f"llama does not know {key}="):
            card.dims_from_config(normalize({**config, key: value, "paddlenlp_version": "2.8"}))
    qwen = plugins.load("qwen").card  # reads the trained length
    trained = {**qwen.config_from_dims(qwen.dims_of("7b")), "seq_length": 1234, "paddlenlp_version": "2.8"}
    assert qwen.dims_from_config(trained).trained == 1234
