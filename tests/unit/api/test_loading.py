"""``llmctl.load``: a folder as a layer and its tokenizer, or as the layer alone."""

import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest

import llmctl
from llmctl.errors import TokenizerError

STARTER = Path(__file__).resolve().parents[3] / "plugins" / "llama" / "llmctl_llama" / "starter" / "model"


def test_a_folder_without_a_tokenizer_loads_as_the_layer_alone(tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(STARTER / name, tmp_path / name)
    with pytest.raises(TokenizerError, match=r"has no tokenizer; .*llmctl.load\(folder, tokenizer=False\)"):
        llmctl.load(tmp_path)
    layer, (whole, tokenizer) = llmctl.load(tmp_path, tokenizer=False), llmctl.load(STARTER)
    ids = paddle.to_tensor([tokenizer.encode("Tom lives in Rome.")])
    assert not layer.training and np.array_equal(layer(ids).numpy(), whole(ids).numpy())
