"""Packed models against larger recordings of original code, beside those that come with the plugins."""

import json
import shutil

import pytest

from llmctl import plugins
from llmctl.card.capabilities import Unsupported
from llmctl.card.support import state
from llmctl.checkpoint.hf_config import read_config
from llmctl.testing.fused import repeat


@pytest.mark.assets
@pytest.mark.parametrize("folder", ["goldens", "goldens_remote"])
@pytest.mark.parametrize("name", ["native", "paddle"])
def test_every_recording_of_a_family_with_a_fused_path_is_repeated(assets, folder, name, tmp_path):
    repeated = []
    for golden in sorted(path.parent for path in (assets / folder).glob("*/golden.npz")):
        plugin = plugins.load_for(read_config(golden), str(golden))
        if not isinstance(state(plugin.card, "fused"), Unsupported):
            repeat(with_its_generation(golden, tmp_path), plugin, name)
            repeated.append(golden.name)
    assert len(repeated) > 5, repeated


def with_its_generation(golden, tmp_path):
    """The folder, or a copy whose config.json says what the original does: the recording of Baichuan-13B was saved with the
    configuration class of the second generation."""
    if golden.name != "baichuan13b_alibi":
        return golden
    folder = shutil.copytree(golden, tmp_path / golden.name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "norm_head": False}))
    return folder
