"""Facts that a card derives from other keys are written into saved models, so that these keys may change."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmctl import plugins
from llmctl.checkpoint import convert as conversion
from llmctl.checkpoint.build import check_model
from llmctl.train.trainable.model_folder import ModelWriter

GOLDEN = Path(__file__).resolve().parents[3] / "plugins" / "llama" / "tests" / "goldens" / "baichuan2_13b"


@pytest.fixture
def source(tmp_path):
    """A model of the second generation as its authors save it: without ``norm_head``."""
    folder = shutil.copytree(GOLDEN, tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key != "norm_head"} | {"z_loss_weight": 0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def norm_head(folder):
    return json.loads((folder / "config.json").read_text()).get("norm_head")


@pytest.mark.parametrize(("layout", "dtype"), [("native", "keep"), ("hf", "bfloat16")])
def test_converted_models_say_what_was_derived(source, tmp_path, layout, dtype):
    dims = check_model(source).dims
    opened = conversion.open_source(source, plugins.load("baichuan"), dims)
    conversion.convert(opened, tmp_path / "made", layout, dtype)
    assert norm_head(source) is None and norm_head(tmp_path / "made") is True
    assert check_model(tmp_path / "made").dims == dims


def test_trained_models_say_what_was_derived(source, tmp_path):
    model, tokenizer = check_model(source), SimpleNamespace(save=lambda to: None, bos_id=1, pad_id=0, eos_ids=(2,))
    (tmp_path / "made").mkdir()
    ModelWriter(model, tokenizer, 10**9).write(tmp_path / "made", model.layer().state_dict(), "float32")
    assert norm_head(tmp_path / "made") is True


def test_config_files_of_other_families_are_copied_as_they_are(tmp_path):
    starter = plugins.load("llama").folder / "starter" / "model"
    opened = conversion.open_source(starter, plugins.load("llama"), check_model(starter).dims)
    conversion.convert(opened, tmp_path / "made", "native")
    assert (tmp_path / "made" / "config.json").read_bytes() == (starter / "config.json").read_bytes()
