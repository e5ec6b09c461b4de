"""``llmctl.LLM``: prompts, conversations, streams and scores by every engine, from one thread and from several."""

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from kit.model_cli import STARTER, llmctl

from llmctl import LLM, LlmctlError, SamplingParams
from llmctl.api.loading import load
from llmctl.data.sft.encoding import prompt_ids
from llmctl.errors import ConfigError, DataError, UnsupportedError
from llmctl.infer.sampling.logprobs import log_softmax
from llmctl.testing.tiny import write_adapter
from llmctl.tokenizers.conversation import Conversation

PROMPTS = ["Deny this: Tom lives in Rome.", "Ask about this: Mia has a red kite.", "The favourite food of Leo is"]
TALK = [{"role": "user", "content": PROMPTS[0]}]
GREEDY = SamplingParams(max_new_tokens=10)
SCORED = SamplingParams(max_new_tokens=10, logprobs=0)
LONG = "The favourite food of Tom is beans. Rome is the home of Mia. " * 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The starter for each engine."""
    folder = tmp_path_factory.mktemp("exported")
    llmctl("export", STARTER, "--output", folder / "program")
    llmctl("export", STARTER, "--engine", "fused", "--output", folder / "packed")
    return {"fused": STARTER, "dynamic": STARTER, "static": folder / "program", "packed": folder / "packed"}


@pytest.fixture(scope="module")
def models(folders):
    engines = {"fused": "fused", "dynamic": "dynamic", "static": "auto", "packed": "auto"}
    made = {name: LLM(folder, engine=engines[name]) for name, folder in folders.items()}
    yield made
    for llm in made.values():
        llm.close()


@pytest.fixture(scope="module", params=["fused", "dynamic", "static", "packed"])
def llm(request, models):
    return models[request.param]


def command(*words):
    return llmctl("generate", STARTER, "--no-stream", "--max-new-tokens", "10", *words)[0].rstrip("\n")


def test_prompts_are_continued_as_by_the_command(llm, capsys):
    expected = [command("--raw", "--prompt", prompt) for prompt in PROMPTS]
    one = llm.generate(PROMPTS[0], GREEDY)
    assert (one.text, one.finish_reason) == (expected[0], "length")
    assert one.prompt_token_ids == llm.tokenizer.encode(PROMPTS[0])
    assert (one.usage.prompt_tokens, one.usage.completion_tokens) == (len(one.prompt_token_ids), 10) == (
        one.usage.total_tokens - 10, len(one.token_ids))  # fmt: skip
    assert [output.text for output in llm.generate(PROMPTS, GREEDY)] == expected
    assert llm.generate(one.prompt_token_ids, GREEDY) == one
    assert llm.generate([one.prompt_token_ids], GREEDY) == [one] and llm.generate([]) == []
    assert capsys.readouterr() == ("", "")


def test_conversations_are_written_by_the_chat_template_as_by_the_command(llm):
    assert llm.chat(TALK, GREEDY).text == command("--prompt", PROMPTS[0])
    more = [{"role": "system", "content": "Be brief."}, *TALK, {"role": "assistant", "content": "No."}, *TALK]
    both = llm.chat([TALK, more], GREEDY)
    asked = Conversation(((PROMPTS[0], "No."), (PROMPTS[0], None)), "Be brief.")
    assert both[1].prompt_token_ids == prompt_ids(llm.tokenizer, asked)
    assert both[0] == llm.chat(TALK, GREEDY)


def test_each_prompt_may_have_parameters_of_its_own(llm):
    params = [
        SamplingParams(max_new_tokens=6, sample=True, seed=3),
        SamplingParams(max_new_tokens=4, logprobs=2),
        GREEDY,
    ]
    outputs = llm.generate(PROMPTS, params)
    assert [output.usage.completion_tokens for output in outputs] == [6, 4, 10]
    assert [len(output.logprobs) for output in outputs] == [0, 4, 0]
    assert all(len(scored.top) == 2 and scored.top[0][1] >= scored.logprob for scored in outputs[1].logprobs)
    assert outputs[0] == llm.generate(PROMPTS[0], params[0]) and outputs[2] == llm.generate(PROMPTS[2], GREEDY)


def test_stop_strings_end_an_answer_and_are_left_out(llm):
    whole = llm.generate(PROMPTS[0], GREEDY).text
    stop = whole[7:10]
    stopped = llm.generate(PROMPTS[0], SamplingParams(max_new_tokens=10, stop=stop))
    assert (stopped.text, stopped.finish_reason) == (whole[: whole.index(stop)], "stop")
    assert (
        "".join(llm.stream(PROMPTS[0], SamplingParams(max_new_tokens=10, stop=[stop, "no such text"]))) == stopped.text
    )


def test_a_stream_is_the_text_in_pieces(llm):
    pieces = list(llm.stream(PROMPTS[0], GREEDY))
    assert len(pieces) > 3 and all(pieces) and "".join(pieces) == llm.generate(PROMPTS[0], GREEDY).text
    assert "".join(llm.stream(TALK, GREEDY)) == llm.chat(TALK, GREEDY).text
    ids = llm.tokenizer.encode(PROMPTS[0])
    assert "".join(llm.stream(ids, GREEDY)) == "".join(pieces)


def test_other_calls_go_between_two_pieces_of_a_stream(llm):
    stream = llm.stream(PROMPTS[0], GREEDY)
    pieces = [next(stream)]
    other = llm.generate(PROMPTS[1], GREEDY)
    assert "".join([*pieces, *stream]) == llm.generate(PROMPTS[0], GREEDY).text
    assert other == llm.generate(PROMPTS[1], GREEDY)


def test_closing_a_stream_cancels_its_request(models):
    stream = models["fused"].stream(PROMPTS[0], SamplingParams(max_new_tokens=400, min_new_tokens=400))
    next(stream)
    stream.close()
    state = models["fused"]._generator.backend.engine.statistics
    deadline = time.monotonic() + 20
    while state().running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state().running == state().waiting == 0
    before = state().steps
    time.sleep(0.1)
    assert state().steps == before


def test_closing_a_stream_of_the_layer_ends_its_thread(models):
    stream = models["dynamic"].stream(PROMPTS[0], SamplingParams(max_new_tokens=400, min_new_tokens=400))
    next(stream)
    stream.close()
    (thread,) = [one for one in threading.enumerate() if one.name == "llmctl-stream"] or [threading.current_thread()]
    if thread is not threading.current_thread():
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def reference():
    """Log-probabilities of token ids, from the layer in float64."""
    import paddle

    layer, _ = load(STARTER, dtype="float64")

    def scores(ids):
        with paddle.no_grad():
            logits_TV = layer(paddle.to_tensor([ids])).numpy()[0]
        return [float(log_softmax(row_V)[token]) for row_V, token in zip(logits_TV, ids[1:], strict=False)]

    return scores


def test_texts_are_scored_as_in_double_precision(llm, models, reference):
    texts = [PROMPTS[0], LONG]
    scores = llm.score(texts)
    for text, found in zip(texts, scores, strict=True):
        assert found.token_ids == llm.tokenizer.encode(text) and found.logprobs[0] is None
        expected = reference(found.token_ids)
        np.testing.assert_allclose(found.logprobs[1:], expected, atol=1e-4)
        assert abs(found.total - sum(expected)) < 1e-4 * len(expected)
        by_layer = models["dynamic"].score(text)
        np.testing.assert_allclose(found.logprobs[1:], by_layer.logprobs[1:], atol=1e-4)
    assert len(scores[1].token_ids) > 128
    # Scored once more, when its blocks are in the cache.
    assert llm.score(LONG) == scores[1] == llm.score([scores[1].token_ids])[0]


def test_a_score_agrees_with_the_logprobs_of_an_answer(llm):
    made = llm.generate(PROMPTS[0], SamplingParams(max_new_tokens=8, logprobs=0))
    scored = llm.score([*made.prompt_token_ids, *made.token_ids])
    np.testing.assert_allclose(scored.logprobs[-8:], [row.logprob for row in made.logprobs], atol=1e-4)


@pytest.mark.parametrize("engine", ["fused", "dynamic"])
def test_threads_get_the_answers_that_they_get_alone(models, engine):
    llm = models[engine]
    params = [SamplingParams(max_new_tokens=6 + n % 3, sample=n % 2 == 1, seed=n, temperature=1.2 if n % 2 else 1.0)
              for n in range(12)]  # fmt: skip
    jobs = [lambda n=n: llm.generate(PROMPTS[n % 3], params[n]) for n in range(12)]
    jobs += [lambda: [one.text for one in llm.generate(PROMPTS, GREEDY)], lambda: "".join(llm.stream(TALK, GREEDY))]
    jobs += [lambda: llm.score(PROMPTS[0]), lambda: llm.chat(TALK, GREEDY).text]
    alone = [job() for job in jobs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = [future.result(60) for future in [pool.submit(job) for job in jobs for _ in range(2)]]
    assert together == [answer for answer in alone for _ in range(2)]


def test_adapters_are_chosen_by_name(tmp_path):
    adapters = {name: write_adapter(tmp_path / name, STARTER, seed) for seed, name in enumerate(("formal", "short"))}
    with LLM(STARTER, adapter=adapters) as llm:
        assert llm.adapters == ("formal", "short")
        plain, formal, short = llm.generate([PROMPTS[0]] * 3, SCORED, adapter=[None, "formal", "short"])
        assert len({output.logprobs[0].logprob for output in (plain, formal, short)}) == 3
        assert llm.generate(PROMPTS[0], SCORED, adapter="formal") == formal
        assert llm.score(PROMPTS[0], adapter="short").total != llm.score(PROMPTS[0]).total
        with pytest.raises(ConfigError, match="adapter='loud' is not loaded; loaded by name: formal, short"):
            llm.generate(PROMPTS[0], adapter="loud")
        with pytest.raises(ConfigError, match="adapter has 1 names for 2 prompts"):
            llm.generate(PROMPTS[:2], adapter=["formal"])
    for folder, options in ((STARTER, {"adapter": adapters["formal"]}), (adapters["formal"], {"engine": "dynamic"})):
        with LLM(folder, **options) as llm:
            found = llm.generate(PROMPTS[0], SCORED).logprobs
            np.testing.assert_allclose(
                [row.logprob for row in found], [row.logprob for row in formal.logprobs], atol=1e-3
            )


def test_options_of_the_engine_have_an_effect(models):
    expected = models["fused"].generate(PROMPTS, GREEDY)
    with LLM(STARTER, speculate=3, batch_size=2, cache_memory="300KB") as llm:
        assert llm.generate(PROMPTS, GREEDY) == expected and llm.max_positions < 512
    with LLM(STARTER, beams=2, length_penalty=0.5, weights="int8") as llm:
        assert llm.generate(PROMPTS[0], GREEDY).text == "".join(llm.stream(PROMPTS[0], GREEDY)) != ""
        with pytest.raises(ConfigError, match="beam search cannot be combined with sampling"):
            llm.generate(PROMPTS[0], SamplingParams(sample=True))


MISTAKES = [
    (lambda llm: llm.generate([1, 10**6]), ConfigError, "has the token 1000000; the model knows those from 0 to"),
    (lambda llm: llm.generate("tea " * 900), ConfigError, "over the 512 positions of the model. Shorten it to fewer"),
    (lambda llm: llm.generate([PROMPTS[0], "tea " * 900]), ConfigError, "^prompt 2 has"),
    (lambda llm: llm.generate(PROMPTS[0], SamplingParams(max_new_tokens=600)), ConfigError, "set max_new_tokens to"),
    (lambda llm: llm.generate(PROMPTS[0], SamplingParams(top_p=0.5)), ConfigError, "top_p has no effect without sample=True"),
    (lambda llm: llm.generate(PROMPTS, [GREEDY]), ConfigError, "params has 1 entries for 3 prompts"),
    (lambda llm: llm.generate(PROMPTS[0], adapter="a"), ConfigError, "adapter='a' is not loaded; loaded by name: none"),
    (lambda llm: llm.chat([{"role": "user"}]), DataError, r"messages\[0\]: content is NoneType; it must be text"),
    (lambda llm: llm.chat([{"role": "tool", "content": "x"}]), DataError, "role is 'tool'; allowed are system, user"),
    (lambda llm: llm.chat(TALK * 2), DataError, "roles user, user; allowed are system"),
    (lambda llm: llm.chat([*TALK, {"role": "assistant", "content": "x"}]), DataError, "ending with user"),
    (lambda llm: llm.chat([{"role": "system", "content": "x"}]), DataError, "the roles system; allowed"),
    (lambda llm: llm.score("tea " * 900), ConfigError, "that is over the 512 positions of the model"),
    (lambda llm: llm.score([5]), ConfigError, "fewer than two tokens"),
    (lambda llm: llm.stream("tea " * 900), ConfigError, "over the 512 positions"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "part"), MISTAKES)
@pytest.mark.parametrize("engine", ["fused", "dynamic"])
def test_mistakes_are_errors_that_say_what_to_do(models, engine, call, kind, part):
    with pytest.raises(kind, match=part):
        call(models[engine])


@pytest.mark.parametrize(
    ("folder", "options", "part"),
    [
        (STARTER, {"kvs": "int8"}, "LLM has no option 'kvs'; did you mean kv?"),
        (STARTER, {"kv": "int4"}, "kv='int4' must be float16, float32 or int8"),
        (STARTER, {"engine": "dynamic", "kv": "int8"}, "kv has no effect with engine='dynamic'"),
        (STARTER, {"engine": "static"}, "holds no exported program"),
        (STARTER, {"cache_memory": "1B"}, "has room for 0 tokens"),
        (STARTER / "absent", {}, "absent"),
        (STARTER, {"family": "lama"}, "Did you mean 'llama'"),
        (STARTER, {"chat_template": "absent.json"}, "there is no chat template absent.json"),
    ],
)
def test_a_model_that_cannot_be_opened_is_an_error(folder, options, part):
    with pytest.raises(LlmctlError, match=part):
        LLM(folder, **options)


def test_several_turns_need_a_chat_template():
    with LLM(STARTER, chat_template="none") as llm:
        assert llm.chat(TALK, GREEDY) == llm.generate(PROMPTS[0], GREEDY)
        with pytest.raises(DataError, match="messages has 3 turns, .* set one with chat_template"):
            llm.chat([*TALK, {"role": "assistant", "content": "x"}] * 2 + TALK)


@pytest.mark.parametrize("engine", ["fused", "dynamic"])
def test_a_closed_model_answers_no_more(engine):
    llm = LLM(STARTER, engine=engine)
    stream = llm.stream(PROMPTS[0], GREEDY)
    next(stream)
    llm.close()
    llm.close()
    for call in (lambda: llm.generate("a"), lambda: llm.score("a b"), lambda: llm.stream("a")):
        with pytest.raises(LlmctlError, match="this LLM is closed"):
            call()
    stream.close()


def test_a_model_that_nobody_holds_stops_its_thread():
    def engines():
        return [thread for thread in threading.enumerate() if thread.name == "llmctl-engine"]

    before = len(engines())
    llm = LLM(STARTER)
    assert len(engines()) == before + 1
    del llm
    gc.collect()
    assert len(engines()) == before


def test_the_reason_for_an_engine_is_a_note_and_nothing_is_printed(monkeypatch, capsys):
    from llmctl.infer.executors import native

    monkeypatch.setattr(native, "available", lambda: False)
    with LLM(STARTER) as llm:
        assert llm.engine == "dynamic" and llm.notes[0].startswith("engine: dynamic (there are no compiled kernels")
        assert llm.generate(PROMPTS[0], GREEDY).text
    assert capsys.readouterr() == ("", "")


def test_texts_of_a_model_that_reads_prompts_in_both_directions_need_their_prompt(models):
    from dataclasses import replace

    from llmctl.card.decoder_spec import PrefixLM

    inputs = replace(models["fused"]._inputs, prefix_lm=PrefixLM(end=7, mask_ids=(6,)))
    with pytest.raises(UnsupportedError, match="the prompt, the token 7 that ends it, and the text that follows"):
        inputs.score_requests(["a text"], None)
    (request,) = inputs.score_requests([[9, 6, 7, 11, 12]], None)
    assert request.score_from == 3
    with pytest.raises(UnsupportedError, match="exported program reads prompts in both directions"):
        replace(models["static"]._inputs, causal=False).score_requests([[9, 6, 7, 11, 12]], None)
