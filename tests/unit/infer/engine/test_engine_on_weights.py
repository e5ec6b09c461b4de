"""Continuous batching over compiled steps of real weights, against the dynamic layer and recorded texts and searches."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest

from llmctl import plugins
from llmctl.checkpoint.build import build, load_model
from llmctl.infer.eager.generate import generate
from llmctl.infer.engine.engine import Engine
from llmctl.infer.executors.native import NativeExecutor, available
from llmctl.infer.packed.pack import RoundToNearest, graph_of, pack, pack_model, state_of
from llmctl.infer.request import BeamOptions, Request
from llmctl.infer.sampling import SamplingParams

pytestmark = pytest.mark.skipif(not available(), reason="no compiled kernels here")
GOLDEN = Path(__file__).resolve().parents[3] / "goldens" / "beams" / "stories260K.json"
GREEDY = SamplingParams(max_new_tokens=24)
SAMPLED = SamplingParams(
    max_new_tokens=24, sample=True, temperature=1.3, top_k=60, top_p=0.95, min_p=0.01, repetition_penalty=1.2,
    presence_penalty=0.3, frequency_penalty=0.1, min_new_tokens=4, seed=3,
)  # fmt: skip


class Stored:
    """A tensor as a checkpoint's file gives it."""

    dtype = "float32"

    def __init__(self, tensor):
        self._array = tensor.numpy()
        self.shape = self._array.shape

    def numpy(self):
        return self._array


@pytest.fixture(scope="module")
def tiny():
    """A layer with random weights, and an executor with the same."""
    plugin = plugins.load("llama")
    sizes = dict(num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
    config = dict(**sizes, intermediate_size=48, vocab_size=96, initializer_range=0.3, max_position_embeddings=256)
    dims = plugin.card.dims_from_config(config)
    paddle.seed(4)
    layer, graph = build(plugin, dims), graph_of(plugin, dims)
    state = state_of({name: Stored(tensor) for name, tensor in layer.state_dict().items()}, graph)
    return layer, graph, NativeExecutor(pack(graph, RoundToNearest(state, "float32")))


@pytest.fixture(scope="module")
def stories(assets):
    folder = assets / "models" / "stories260K"
    layer, dims, plugin = load_model(folder)
    model = pack_model(folder, plugin, dims)
    return folder, layer, NativeExecutor(model), model.graph


def prompts(count, vocab, longest=60):
    draws = np.random.default_rng(1)
    return [draws.integers(2, vocab, draws.integers(1, longest)).tolist() for _ in range(count)]


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    "sizes", [dict(blocks=200), dict(blocks=12, step_tokens=24, most_rows=5)], ids=["roomy", "tight"]
)
def test_tokens_are_those_of_the_dynamic_layer(tiny, options, sizes):
    layer, graph, executor = tiny
    asked = prompts(10, 96)
    expected = generate(layer, asked, options, [0, 1], 0)
    engine = Engine(executor, graph, end_ids=[0, 1], **sizes)
    requests = [Request(prompt=prompt, options=options, index=i) for i, prompt in enumerate(asked)]
    assert engine.generate(requests) == expected
    assert engine.generate([replace(request, draft=4) for request in requests]) == expected
    assert engine.statistics().used_blocks == 0


def test_log_probabilities_are_those_of_the_dynamic_layer(tiny):
    layer, graph, executor = tiny
    options = replace(GREEDY, logprobs=5)
    asked = prompts(3, 96)
    expected = generate(layer, asked, options, [0, 1], 0)
    found = Engine(executor, graph, blocks=60, end_ids=[0, 1]).generate(
        [Request(prompt=p, options=options) for p in asked]
    )
    for one, other in zip(found, expected, strict=True):
        assert [score.token for score in one.logprobs] == one.ids == other.ids
        for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
            assert abs(mine.logprob - theirs.logprob) < 1e-4 and len(mine.top) == 5
            np.testing.assert_allclose([p for _, p in mine.top], [p for _, p in theirs.top], atol=1e-4)


@pytest.mark.assets
def test_a_trained_model_tells_its_authors_story_beside_other_requests(stories):
    folder, _, executor, graph = stories
    golden = json.loads((folder / "golden_text.json").read_text())
    options = SamplingParams(max_new_tokens=golden["new_tokens"])
    story = Request(prompt=golden["prompt_ids"], options=options)
    others = [Request(prompt=prompt, options=SAMPLED, index=i) for i, prompt in enumerate(prompts(6, graph.vocab))]
    engine = Engine(executor, graph, blocks=40)
    found = engine.generate([*others, story, replace(story, draft=5)])
    assert found[-1].ids == found[-2].ids == golden["greedy_ids"][1:]
    assert engine.statistics().accepted_tokens > 20


@pytest.mark.assets
def test_a_trained_model_draws_what_the_dynamic_layer_draws(stories):
    _, layer, executor, graph = stories
    asked = prompts(6, graph.vocab, 30)
    options = replace(SAMPLED, max_new_tokens=60)
    requests = [Request(prompt=prompt, options=options, index=i) for i, prompt in enumerate(asked)]
    assert Engine(executor, graph, blocks=24, end_ids=[1]).generate(requests) == generate(layer, asked, options, [1], 0)


@pytest.mark.assets
def test_beam_searches_are_the_recorded(stories):
    _, _, executor, graph = stories
    golden = json.loads(GOLDEN.read_text())
    for one in golden["searches"]:
        options = dict(one["options"])
        beams = options.pop("num_beams")
        ends = options.pop("eos_token_id", [golden["origin"]["end"]])
        rules = {name: options.pop(name) for name in ("length_penalty", "early_stopping") if name in options}
        request = Request(
            prompt=one["prompt"], options=SamplingParams(**options),
            beams=BeamOptions(beams=beams, answers=beams, **rules),
        )  # fmt: skip
        # Little room, so that beams share and copy blocks; the others take some away meanwhile.
        engine = Engine(executor, graph, blocks=24, end_ids=ends)
        busy = [Request(prompt=prompt, options=GREEDY) for prompt in prompts(3, graph.vocab)]
        found = engine.generate([*busy, request])[-1]
        every = [found, *found.others]
        assert [answer.ids for answer in every] == one["answers"], one["case"]
        np.testing.assert_allclose([answer.score for answer in every], one["scores"], atol=1e-4, rtol=1e-4)
        assert engine.statistics().used_blocks == 0
