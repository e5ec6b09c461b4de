"""Regular expressions of foreign adapters and models: read as peft reads them, and bounded in time."""

import time

import pytest

from llmctl.errors import CheckpointError
from llmctl.io import patterns

WHERE = "the configuration"


def test_patterns_mean_what_they_mean_in_python():
    assert patterns.matches(r".*\.(q|v)_proj", "model.layers.0.self_attn.q_proj", WHERE)
    assert not patterns.matches(r"(q|v)_proj", "model.layers.0.self_attn.q_proj", WHERE)
    assert patterns.matches(r"(.*\.)?(layers\.1\..*)$", "model.layers.1.mlp", WHERE, whole=False)
    unsloth = r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:mlp)\.up)"
    assert patterns.matches(unsloth, "model.layers.12.mlp.up", WHERE) and not patterns.matches(
        unsloth, "model.layers.x.mlp.up", WHERE
    )


@pytest.mark.parametrize("text", ["(", "x{99999999999}", "[z-a]", "(?P<a>x)(?P<a", "a" * 200_000])
def test_what_is_no_pattern_is_told(text):
    assert not patterns.is_pattern(text)


@pytest.mark.parametrize(
    "bomb", ["(([a-z._0-9])+)+X", "(a|aa)+$", r"(.*)*\1(a|aa)+b", "(a+)+b", "(.*.*.*.*.*.*.*.*x)+y"]
)
def test_a_pattern_that_backtracks_without_end_is_ended(monkeypatch, bomb):
    monkeypatch.setattr(patterns, "PATTERN_SECONDS", 0.2)
    begun = time.monotonic()
    try:
        assert not patterns.matches(bomb, "a" * 200 + "!", WHERE)
    except CheckpointError as error:
        assert "takes longer than" in str(error)
    assert time.monotonic() - begun < 10
