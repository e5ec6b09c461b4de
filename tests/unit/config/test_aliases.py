import pytest

from llmctl.config import schema
from llmctl.config.aliases import ALIASES
from llmctl.errors import ConfigError
from llmctl.jobs.registry import COMMANDS, resolve

CONFIGS = {name: resolve(command.config) for name, command in COMMANDS.items()}
KEYS = {name: [row[0] for row in schema.describe(cls)] for name, cls in CONFIGS.items()}


def refusal(data, command="finetune"):
    with pytest.raises(ConfigError) as caught:
        schema.build(CONFIGS[command], data)
    return str(caught.value)


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_every_alias_leads_to_keys_that_there_are_or_says_why_not(alias):
    known = {key for keys in KEYS.values() for key in keys}
    assert set(ALIASES[alias].keys) <= known
    assert ALIASES[alias].keys or ALIASES[alias].hint


@pytest.mark.parametrize(
    "command, data, answer",
    [
        ("finetune", {"per_device_train_batch_size": 4}, "per_device_train_batch_size; did you mean train.batch_size?"),
        ("finetune", {"train": {"lr": 1}}, "train.lr; did you mean train.learning_rate?"),
        ("finetune", {"method": {"r": 8}}, "method.r; did you mean method.rank?"),
        (
            "finetune",
            {"bf16": True},
            "bf16; did you mean model.dtype? (`bfloat16`; mixed precision on GPUs is train.amp=O1)",
        ),
        ("finetune", {"cutoff_len": 9}, "cutoff_len; did you mean data.max_length?"),
        ("pretrain", {"cutoff_len": 9}, "cutoff_len; did you mean data.seq_length?"),
        ("dpo", {"pref_beta": 0.1}, "pref_beta; did you mean dpo.beta?"),
        ("finetune", {"warmup_ratio": 0.1}, "warmup_ratio; did you mean train.warmup_ratio?"),
        ("finetune", {"train": {"max_length": 9}}, "train.max_length; did you mean data.max_length?"),
        (
            "finetune",
            {"deepspeed": "x"},
            "deepspeed; did you mean parallel.sharding? (a number of devices; the stage of ZeRO is parallel.sharding_stage)",
        ),
        (
            "pretrain",
            {"train": {"tensor_parallel_degree": 2}},
            "train.tensor_parallel_degree; did you mean parallel.tensor?",
        ),
        ("pretrain", {"lora_rank": 8}, "lora_rank; known: model, data, train, parallel, output"),
    ],
)
def test_keys_of_other_programs_and_sections_are_known(command, data, answer):
    assert f"unknown key {answer}" in refusal(data, command)
