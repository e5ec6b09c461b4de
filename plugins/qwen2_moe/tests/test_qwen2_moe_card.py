"""What config.json says about the layers of Qwen2-MoE, and a recording from elsewhere."""

import pytest

from llmctl import ConfigError
from llmctl.testing import check_golden
from llmctl_qwen2_moe import CARD


@pytest.mark.assets
def test_recorded_results_are_repeated(assets):
    check_golden(assets / "goldens" / "qwen2_moe")


def test_layers_with_experts_follow_step_and_list():
    values = dict(num_hidden_layers=6, hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    dims = CARD.dims_from_config({**values, "decoder_sparse_step": 2, "mlp_only_layers": [3]})
    names = {tensor.name for tensor in CARD.expand(dims)}
    assert [f"qwen2_moe.layers.{i}.mlp.shared_expert_gate.weight" in names for i in range(6)] == [0, 1, 0, 0, 0, 1]
    assert [f"qwen2_moe.layers.{i}.mlp.gate_proj.weight" in names for i in range(6)] == [1, 0, 1, 1, 1, 0]


@pytest.mark.parametrize("step", [0, -1, 1.5])
def test_a_step_that_is_no_whole_number_is_refused(step):
    with pytest.raises(ConfigError, match="decoder_sparse_step=.* must be a whole number above 0"):
        CARD.dims_of("qwen2-57b-a14b", step=step)


def test_a_window_in_some_layers_is_refused():
    with pytest.raises(ConfigError, match="every layer must be 'full_attention'"):
        CARD.dims_of("qwen2-57b-a14b", layer_types=["sliding_attention"] * 28)
