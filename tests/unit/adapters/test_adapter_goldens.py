"""Adapters that peft made: the same logits as peft's own, and the same files when they are written back.

The goldens are made by tools/goldens/make_adapter_golden.py, so that neither torch nor peft is needed here.
"""

import json
import math
from pathlib import Path

import numpy as np
import paddle
import pytest

from llmctl.adapters import folder as folders
from llmctl.adapters.attach import load_adapted
from llmctl.adapters.merge import merge
from llmctl.checkpoint.build import load_model
from llmctl.checkpoint.formats import safetensors

GOLDENS = Path(__file__).resolve().parents[2] / "goldens" / "adapters"
CASES = sorted(path.name for path in GOLDENS.iterdir())


def tensors(folder):
    return {
        name: (info.shape, np.fromfile(info.file, "<f4", info.size, offset=info.offset))
        for name, info in safetensors.read_header(folder / "adapter_model.safetensors").items()
    }


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_of_peft_gives_the_logits_of_peft(case, tmp_path):
    golden = np.load(GOLDENS / case / "golden.npz")
    model, opened = load_adapted(GOLDENS / case / "adapter")
    merge(opened, tmp_path / "merged", "float32")
    merged = load_model(tmp_path / "merged")[0]
    plain = load_model(GOLDENS / case)[0]
    ids = paddle.to_tensor(golden["input_ids"])
    with paddle.no_grad():
        for layer in (model, merged, plain):
            layer.eval()
        np.testing.assert_allclose(model(ids).numpy(), golden["logits"], atol=1e-4)
        np.testing.assert_allclose(merged(ids).numpy(), golden["logits"], atol=1e-4)
        assert np.abs(plain(ids).numpy() - golden["logits"]).max() > 0.1


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_what_peft_wrote(case, tmp_path):
    folder = GOLDENS / case / "adapter"
    _, opened = load_adapted(folder)
    folders.write(tmp_path, opened.adapter, opened.plugin, opened.dims)
    theirs, ours = tensors(folder), tensors(tmp_path)
    assert theirs.keys() == ours.keys()
    for name, (shape, values) in theirs.items():
        assert ours[name][0] == shape
        np.testing.assert_array_equal(ours[name][1], values, err_msg=name)
    config = json.loads((folder / "adapter_config.json").read_text())
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    for key in ("peft_type", "task_type", "use_dora", "use_rslora", "bias", "fan_in_fan_out"):
        assert written[key] == config[key], key
    for name in theirs:
        module = name.removeprefix("base_model.model.").partition(".lora_")[0]
        assert any(module == target or module.endswith("." + target) for target in written["target_modules"]), module
    shapes = {name.partition(".lora_")[0]: shape for name, (shape, _) in theirs.items() if ".lora_A" in name}
    assert scales(written, shapes) == pytest.approx(scales(config, shapes), rel=1e-12)


def scales(config, shapes):
    """Scale by module as peft's documentation defines it."""

    def of(pattern, module, default):
        return next((value for key, value in pattern.items() if module.endswith(key)), default)

    found = {}
    for module, (rank, _) in shapes.items():
        assert of(config["rank_pattern"], module, config["r"]) == rank
        alpha = of(config["alpha_pattern"], module, config["lora_alpha"])
        found[module] = alpha / (math.sqrt(rank) if config["use_rslora"] else rank)
    return found
