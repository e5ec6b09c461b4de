"""Lengths that are not set suit the model; only those that are set can contradict each other or the model."""

from pathlib import Path

import pytest

from llmctl import plugins
from llmctl.config import schema
from llmctl.config.dpo import DpoConfig
from llmctl.config.finetune import FinetuneConfig
from llmctl.errors import ConfigError
from llmctl.jobs.lengths import fitted, multiple_of


def dims(positions=512, **changes):
    card = plugins.load("llama").card
    return card.dims_of("llama2-7b").replace(max_positions=positions, **changes)


def sft(positions=512, method=None, **data):
    config = schema.build(FinetuneConfig, {"data": data, "method": method or {}})
    made = fitted(config, dims(positions), Path("model")).data
    return made.src_length, made.max_length


def dpo(positions=512, **data):
    made = fitted(schema.build(DpoConfig, {"data": data}), dims(positions), Path("model")).data
    return made.max_prompt_length, made.max_length


@pytest.mark.parametrize(
    ("positions", "given", "expected"),
    [
        (4096, {}, (1024, 2048)),
        (512, {}, (256, 512)),
        (512, {"max_length": 100}, (50, 100)),
        (4096, {"max_length": 4096}, (1024, 4096)),
        (4096, {"src_length": 1500}, (1500, 3000)),
        (2048, {"src_length": 1500}, (1500, 2048)),
        (512, {"max_length": 2}, (1, 2)),
        (100, {"pad_to_multiple_of": 64}, (32, 64)),
        (512, {"src_length": None, "max_length": None}, (256, 512)),
    ],
)
def test_what_is_not_set_suits_what_is_set_and_the_model(positions, given, expected):
    assert sft(positions, **given) == expected


def test_devices_that_divide_the_tokens_get_equally_many():
    sections = {"data": {"pad_to_multiple_of": 12}, "parallel": {"tensor": 8, "sequence": True}}
    config = schema.build(FinetuneConfig, sections)
    assert multiple_of(config) == 24 and fitted(config, dims(100), Path("model")).data.max_length == 96
    config.data.max_length = 98
    with pytest.raises(
        ConfigError, match="=12 with parallel.sequence and parallel.tensor=8 pads rows .* to 120 tokens"
    ):
        fitted(config, dims(100), Path("model"))
    config.parallel.sequence = False
    assert multiple_of(config) == 12


def test_virtual_tokens_are_left_room_for():
    assert sft(method={"name": "prefix", "virtual_tokens": 100}) == (206, 412)


@pytest.mark.parametrize(
    ("positions", "given", "expected"),
    [
        (4096, {}, (1024, 2048)),
        (512, {}, (256, 512)),
        (512, {"max_length": 3}, (1, 3)),
        (512, {"max_length": 64}, (32, 64)),
    ],
)
def test_preferences_have_room_for_two_answers(positions, given, expected):
    assert dpo(positions, **given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"max_length": 513},
            "data.max_length=513 exceeds the 512 positions of model; set data.max_length to 512 or less",
        ),
        ({"src_length": 64, "max_length": 64}, "data.src_length=64 leaves no room for answers in data.max_length=64"),
        ({"src_length": 512}, "data.src_length=512 leaves no room for answers in data.max_length=512"),
        ({"max_length": 1}, "data.max_length=1 leaves no room for prompt and answers; set it to 2 or more"),
        ({"packing": "best-fit", "packed_length": 100}, "data.packed_length=100 is less than data.max_length=512"),
    ],
)
def test_what_is_set_and_does_not_fit_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        sft(**given)


def test_two_answers_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="max_prompt_length=63 leaves no room for two answers in data.max_length=64"):
        dpo(max_prompt_length=63, max_length=64)
