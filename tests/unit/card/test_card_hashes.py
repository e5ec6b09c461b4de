"""Stored files name cards by their hash: adapters, packed models and runs of earlier releases stay valid."""

import pytest

from llmctl import ConfigField, Setting, plugins
from llmctl.card.family import HASHED_NAMES

HASHES = {
    "baichuan": "21909b63b609a8b4",
    "bloom": "a97b499f0ce37be8",
    "chatglm": "501829ab23d1e586",
    "chatglm2": "a0b2c6a3a7eb47be",
    "gpt3": "13b6484b3d75cdbd",
    "llama": "b24b708209ab3389",
    "mistral": "3515b3f7f1b70f9b",
    "mixtral": "8c5fff456becb6f3",
    "opt": "6ce8394524063fa7",
    "qwen": "dc58e9309a6098f9",
    "qwen2": "dd5859f2b8657d03",
    "qwen2_moe": "f2576ac1cf78665a",
    "qwen3": "4ad466f241e9c068",
}


@pytest.mark.parametrize("family", HASHES)
def test_the_hash_of_a_card_does_not_depend_on_the_names_of_classes(family):
    assert plugins.load(family).card.hash() == HASHES[family]


def test_the_hash_of_every_installed_family_is_recorded():
    assert {found.name for found in plugins.installed()} == set(HASHES)


def test_names_of_rows_in_the_hash_are_those_of_the_first_release():
    assert {cls.__name__: name for cls, name in HASHED_NAMES.items()} == {"Param": "Param", "ConfigField": "Setting"}
    assert Setting is ConfigField
