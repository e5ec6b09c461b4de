"""``llmctl bench``: what it measures is counted in tokens, random models need no checkpoint, mistakes are refused."""

import json

import pytest
from kit.model_cli import STARTER, llmctl

from llmctl import plugins
from llmctl.errors import LlmctlError
from llmctl.infer import bench, handle
from llmctl.infer.request import Event, Generation

SMALL = "layers=1,hidden=32,heads=2,kv_heads=2,ffn=48,vocab=96"
QUICK = ["--rounds", "2", "--prompt-tokens", "12", "--new-tokens", "5", "--requests", "3"]


class Clocked:
    """Answers by the clock of a test: prompts take 2 s, each further token of all requests 0.5 s."""

    def __init__(self, monkeypatch, failing=None):
        self.now, self.failing = 100.0, failing
        monkeypatch.setattr(bench.time, "perf_counter", lambda: self.now)

    def run(self, requests):
        requests = list(requests)
        for step in range(requests[0].options.max_new_tokens):
            self.now += 2.0 if step == 0 else 0.5
            for request in requests:
                request.on_event(Event(0, 7))
        for place in range(len(requests)):
            bad = place == self.failing
            yield place, Generation([], "error" if bad else "length", "no room" if bad else "")


def test_speeds_are_tokens_by_the_clock(monkeypatch):
    load = bench.Load(prompt=10, new=5, requests=4, vocab=50)
    found = bench.measure(Clocked(monkeypatch), load, 0)
    assert (found.seconds, found.first, found.prefill, found.decode, found.whole) == (4.0, (2.0,) * 4, 20.0, 8.0, 5.0)
    assert found.between == (0.5,) * 16
    whole = bench.summary([found, found])
    assert whole["tokens_per_second"] == {"prefill": 20.0, "decode": 8.0, "whole": 5.0}
    assert whole["seconds_between_tokens"] == {"p50": 0.5, "p90": 0.5, "p99": 0.5}


def test_a_request_that_fails_is_no_measurement(monkeypatch):
    with pytest.raises(LlmctlError, match="request 2: no room"):
        bench.measure(Clocked(monkeypatch, failing=1), bench.Load(prompt=4, new=2, requests=3, vocab=9), 0)


def test_prompts_are_tokens_of_the_vocabulary_and_differ_between_rounds():
    load = bench.Load(prompt=30, new=1, requests=5, vocab=17, ending=(3, 9))
    prompts = load.prompts(1)
    assert [len(row) for row in prompts] == [30] * 5 and all(row[-2:] == [3, 9] for row in prompts)
    assert {token for row in prompts for token in row[:-2]} == set(range(17)) - {3, 9}
    assert load.prompts(1) == prompts != load.prompts(2)


@pytest.mark.parametrize("engine", ["fused", "dynamic"])
def test_a_model_is_measured_and_everything_written(tmp_path, engine):
    out, _ = llmctl("bench", STARTER, "--engine", engine, *QUICK, "--output", tmp_path / "b.json")
    assert "warm-up 1" in out and "round 2" in out and "medians: prompts" in out
    found = json.loads((tmp_path / "b.json").read_text())
    assert (found["engine"], found["requests"], found["prompt_tokens"]) == (engine, 3, 12)
    assert len(found["rounds"]) == 2 and len(found["warm_up"]) == 1 and len(found["rounds"][0]["first"]) == 3
    assert min(found["tokens_per_second"].values()) > 0 and found["peak_bytes"] > 10**7
    assert set(found["seconds_to_first_token"]) == {"p50", "p90", "p99"}


def test_models_with_random_weights_need_no_checkpoint(tmp_path):
    assert "medians" in llmctl("--model", "llama", "bench", "--random", SMALL, "--weights", "int8", *QUICK)[0]
    assert (
        "medians" in llmctl("--model", "chatglm", "bench", "--random", "layers=1,hidden=32,heads=2,ffn=48", *QUICK)[0]
    )


@pytest.mark.parametrize("name", [found.name for found in plugins.installed()])
def test_a_random_model_is_a_checkpoint_of_its_family(tmp_path, name):
    from llmctl.card.tiny import tiny_dims
    from llmctl.checkpoint.convert import open_source
    from llmctl.checkpoint.hf_config import read_config
    from llmctl.infer.random_model import write_random

    plugin = plugins.load(name)
    dims = tiny_dims(plugin.card, {"bos": 90, "gmask": 91, "mask": 92} if name == "chatglm" else None)
    write_random(tmp_path, plugin, dims)
    config = read_config(tmp_path)
    assert plugins.resolve("auto", config, "config.json").card.name == name
    assert plugin.card.dims_from_config(config) == dims
    state = open_source(tmp_path, plugin, dims).state
    assert set(state) == {tensor.name for tensor in plugin.card.expand(dims)}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["bench"], "give MODEL or --random"),
        (["bench", STARTER, "--random", "tiny"], "give MODEL or --random"),
        (["bench", "--random", "tiny"], "--random needs a family"),
        (["--model", "llama", "bench", "--random", "9000b"], "has no size '9000b'"),
        (["--model", "llama", "bench", "--random", "hiden=3"], "has no setting 'hiden'"),
        (["--model", "llama", "bench", "--random", "hidden=x"], "hidden='x' must be a number"),
        (["bench", STARTER, "--prompt-tokens", "500"], "are over the 512 positions"),
        (["bench", STARTER, "--engine", "static"], "holds no exported program"),
        (["bench", STARTER, "--engine", "dynamic", "--kv", "int8"], "--kv has no effect with --engine dynamic"),
        (["bench", STARTER, "--output", STARTER], "is a folder"),
    ],
)
def test_mistakes_are_refused(words, part):
    assert part in llmctl(*words, code=2)[1]


def test_prompts_that_do_not_fit_are_refused_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr(handle.FusedHandle, "load", lambda *_: pytest.fail("loaded"))
    said = llmctl("bench", STARTER, "--engine", "fused", "--prompt-tokens", "500", code=2)[1]
    assert "--prompt-tokens 500 and --new-tokens 64 are over the 512 positions of the model" in said
