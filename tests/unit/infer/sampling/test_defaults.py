"""What generation_config.json says holds where nothing is given."""

import json
from dataclasses import replace

import pytest

from llmctl.errors import ConfigError, FileError
from llmctl.infer.sampling import SamplingParams
from llmctl.infer.sampling.defaults import FILE, SamplingDefaults, read_defaults, shortened

CONTENT = {
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
    "max_new_tokens": 300,
    "repetition_penalty": 1.1,
}


@pytest.fixture
def write(tmp_path):
    def made(content):
        (tmp_path / FILE).write_text(json.dumps(content))
        return read_defaults(tmp_path)

    return made


def test_the_file_sets_what_is_not_given(write):
    expected = SamplingParams(
        sample=True, temperature=0.6, top_p=0.95, top_k=20, max_new_tokens=300, repetition_penalty=1.1
    )
    assert write(CONTENT).params() == expected
    assert write(CONTENT).params({"top_p": 0.5, "seed": 3}) == replace(expected, top_p=0.5, seed=3)
    assert write({"max_new_tokens": 7, "temperature": 0.6, "eos_token_id": 2}).params() == SamplingParams(
        max_new_tokens=7
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"sample": False}, {"max_new_tokens": 300, "repetition_penalty": 1.1}),
        ({"temperature": 0}, {"max_new_tokens": 300, "repetition_penalty": 1.1}),
    ],
)
def test_greedy_turns_sampling_off(write, given, expected):
    assert write(CONTENT).params(given) == SamplingParams(**expected)


@pytest.mark.parametrize("given", [{"temperature": 0.5}, {"top_p": 0.5}, {"top_k": 5}, {"min_p": 0.1}])
def test_what_only_sampling_has_turns_it_on(write, given):
    assert SamplingDefaults().params(given) == SamplingParams(sample=True, **given)
    assert write({"do_sample": False, "top_k": 9}).params({"seed": 1}) == SamplingParams(seed=1)
    assert write({"do_sample": False, "top_k": 9}).params(given) == SamplingParams(**{"top_k": 9, **given}, sample=True)


def test_what_was_given_is_checked_and_what_the_file_says_is_named(write, tmp_path):
    defaults = write(
        {"do_sample": True, "temperature": 0, "top_p": 7, "top_k": "x", "max_new_tokens": 9, "num_beams": 4}
    )
    assert defaults.params() == SamplingParams(sample=True, max_new_tokens=9)
    assert len(defaults.notes) == 3 and "top_p=7.0 is left out: top_p=7.0 must be above 0" in defaults.notes[2]
    assert defaults.unused == ("num_beams",)
    assert not write({"do_sample": False, "temperature": 0, "num_beams": 1}).notes
    with pytest.raises(ConfigError, match="top_p=7 must be"):
        defaults.params({"top_p": 7})
    (tmp_path / FILE).write_text("{")
    with pytest.raises(FileError):
        read_defaults(tmp_path)


def test_an_answer_may_be_shorter_than_the_least_that_the_file_says(write):
    assert write({"min_new_tokens": 50}).params({"max_new_tokens": 8}).min_new_tokens == 8


def test_the_file_of_the_adapter_goes_first(tmp_path):
    for name, tokens in (("adapter", 5), ("base", 6)):
        (tmp_path / name).mkdir()
        (tmp_path / name / FILE).write_text(json.dumps({"max_new_tokens": tokens}))
    folders = tmp_path / "adapter", tmp_path / "base"
    assert read_defaults(*folders).params().max_new_tokens == 5
    (folders[0] / FILE).unlink()
    assert read_defaults(*folders).params().max_new_tokens == 6
    (folders[1] / FILE).unlink()
    assert read_defaults(*folders) == SamplingDefaults()


def test_where_values_come_from_is_known(write):
    defaults = replace(write({"max_new_tokens": 7, "top_k": 3}), own={"min_new_tokens": 2})
    assert defaults.origins({"temperature": 0.5, "seed": 0}) == {
        "max_new_tokens": FILE, "min_new_tokens": "default", "sample": "implied", "temperature": "given", "top_k": FILE,
        "seed": "given",
    }  # fmt: skip


def test_answers_end_where_positions_end():
    params = SamplingParams(max_new_tokens=100, min_new_tokens=50)
    assert shortened(params, 10, 0) is params and shortened(params, 10, 110) is params
    assert shortened(params, 90, 120) == SamplingParams(max_new_tokens=30, min_new_tokens=30)
    assert shortened(params, 120, 120) is params
