"""Answers to the requests of lm-evaluation-harness, beside those of its own Hugging Face model (recorded)."""

import json

import pytest
from kit.paths import GOLDENS, STARTER

from llmctl.errors import ConfigError, DataError, UnsupportedError
from llmctl.infer.harness.scorer import Scorer, sampling_params
from llmctl.infer.options import EngineOptions
from llmctl.infer.select import open_backend

GOLDEN = json.loads((GOLDENS / "lm_eval" / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=["fused", "dynamic"])
def scorer(request):
    kv = "float32" if request.param == "fused" else None
    handle = open_backend(STARTER / "model", options=EngineOptions(engine=request.param, kv=kv))
    scorer = Scorer(handle, handle.tokenizer())
    yield scorer
    scorer.close()


def test_log_likelihoods_and_greedy_flags_are_those_of_hflm(scorer):
    pairs, wanted = zip(*GOLDEN["loglikelihood"], strict=True)
    found = scorer.loglikelihood([tuple(pair) for pair in pairs])
    assert [one[0] for one in found] == pytest.approx([one[0] for one in wanted], rel=1e-6, abs=1e-5)
    assert [one[1] for one in found] == [one[1] for one in wanted] and {one[1] for one in found} == {False, True}


def test_log_likelihoods_of_whole_texts_are_those_of_hflm(scorer):
    texts, wanted = zip(*GOLDEN["loglikelihood_rolling"], strict=True)
    assert scorer.loglikelihood_rolling(texts) == pytest.approx(wanted, rel=1e-6, abs=1e-5)
    assert scorer.loglikelihood_rolling([]) == [] == scorer.loglikelihood([])


def test_answers_are_those_of_hflm(scorer):
    asked, wanted = zip(*GOLDEN["generate_until"], strict=True)
    assert scorer.generate_until([tuple(one) for one in asked]) == list(wanted)


def test_continuations_of_one_context_share_what_is_computed():
    class Counted:
        """The engine, which notes what it is asked."""

        def __init__(self, handle):
            self.handle, self.positions, self.asked, self.cached = handle, handle.positions, [], 0

        def load(self, tokenizer, lengths):
            loaded = self.handle.load(tokenizer, lengths)
            run = loaded.backend.run

            def counted(requests):
                for number, made in run(self.asked.append(one) or one for one in requests):
                    self.cached += made.cached_tokens
                    yield number, made

            loaded.backend.run = counted
            return loaded

    handle = Counted(open_backend(STARTER / "model", options=EngineOptions(kv="float32")))
    scorer = Scorer(handle, handle.handle.tokenizer())
    context = "The cat sleeps on the mat, and nobody knows why. " * 8
    # Two continuations of one token, which are one request, and two longer ones.
    scorer.loglikelihood([(context, end) for end in ("Tom", "Mia", "Tom lives in Rome.", "Mia is in Paris.")])
    assert len(handle.asked) == 3
    assert handle.cached > 100
    scorer.close()


def test_a_task_that_does_not_fit_the_model_is_refused_with_what_to_do():
    handle = open_backend(STARTER / "model")
    scorer = Scorer(handle, handle.tokenizer())
    with pytest.raises(ConfigError, match="up to 512 tokens .max_gen_toks., and the model has 512 positions; lower it"):
        scorer.generate_until([("Tom", {"until": [], "max_gen_toks": 512})])
    with pytest.raises(DataError, match="that is over the 512 positions of the model"):
        scorer.loglikelihood([("Tom", " lives" * 600)])
    with pytest.raises(DataError, match="the continuation '' adds no token to the context 'Tom'"):
        scorer.loglikelihood([("Tom", "")])


def test_what_a_task_says_of_answers_becomes_sampling():
    greedy = sampling_params({"until": "\n", "do_sample": False, "temperature": 0.7, "max_tokens": 9})
    assert (greedy.sample, greedy.temperature, greedy.stop, greedy.max_new_tokens) == (False, 1.0, ("\n",), 9)
    drawn = sampling_params({"until": ["", "Q:"], "temperature": 0.7, "top_p": 0.9})
    assert (drawn.sample, drawn.temperature, drawn.top_p, drawn.stop, drawn.max_new_tokens) == (True, 0.7, 0.9, ("Q:",), 256)  # fmt: skip
    with pytest.raises(UnsupportedError, match="generation_kwargs have num_beams; known are until, do_sample"):
        sampling_params({"num_beams": 4})
