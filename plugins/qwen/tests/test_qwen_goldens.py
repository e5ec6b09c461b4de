"""Qwen, Qwen2 and Qwen3 against recordings of the original code."""

import pytest

from llmctl.errors import ConfigError
from llmctl.testing.golden import check_all
from llmctl_qwen import qwen2_moe


@pytest.mark.assets
@pytest.mark.parametrize("case", ["qwen2_bias", "qwen2_tied", "qwen2_moe", "qwen3_qknorm"])
def test_recorded_results_of_the_later_generations_are_repeated(assets, case):
    check_all(assets / "goldens" / case)


@pytest.mark.assets
@pytest.mark.parametrize("case", ["qwen1_basic", "qwen1_long"])
def test_recorded_results_of_the_first_generation_are_repeated(assets, case):
    check_all(assets / "goldens_remote" / case)


def test_layers_with_experts_follow_step_and_list():
    values = dict(num_hidden_layers=6, hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    dims = qwen2_moe.CARD.dims_from_config({**values, "decoder_sparse_step": 2, "mlp_only_layers": [3]})
    names = {tensor.name for tensor in qwen2_moe.CARD.expand(dims)}
    assert [f"qwen2_moe.layers.{i}.mlp.shared_expert_gate.weight" in names for i in range(6)] == [0, 1, 0, 0, 0, 1]
    assert [f"qwen2_moe.layers.{i}.mlp.gate_proj.weight" in names for i in range(6)] == [1, 0, 1, 1, 1, 0]


@pytest.mark.parametrize("step", [0, -1, 1.5])
def test_a_step_that_is_no_whole_number_is_refused(step):
    with pytest.raises(ConfigError, match="decoder_sparse_step=.* must be a whole number above 0"):
        qwen2_moe.CARD.dims_of("qwen2-57b-a14b", step=step)
