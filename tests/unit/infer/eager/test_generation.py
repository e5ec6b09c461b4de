"""Generation on a small model with random weights: identities, batches, streams, stop strings, files, chat."""

import json

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.chat_templates import JINJA
from kit.tiny_tokenizers import KINDS, write_json

from llmctl import plugins, tokenizers
from llmctl.checkpoint.build import build
from llmctl.errors import ConfigError, DataError
from llmctl.infer.backend import BatchBackend
from llmctl.infer.eager.generate import generate
from llmctl.infer.sampling import SamplingParams
from llmctl.infer.text.chat import Chat
from llmctl.infer.text.generator import TextGenerator, TextRequest
from llmctl.infer.text.prompt_file import answer_rows, read_prompts
from llmctl.infer.text.stream import StopFilter

VOCAB = 360
PROMPTS = [[5, 9, 30], [7], [11, 200, 31, 8, 90, 41, 2, 100], [3, 3]]
GREEDY = SamplingParams(max_new_tokens=12)
SAMPLED = SamplingParams(max_new_tokens=12, sample=True, temperature=1.5, top_k=50, top_p=0.9, repetition_penalty=1.3)


@pytest.fixture(scope="module")
def model():
    plugin = plugins.load("llama")
    sizes = dict(num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
    config = dict(**sizes, intermediate_size=48, vocab_size=VOCAB, initializer_range=0.3, max_position_embeddings=256)
    paddle.seed(4)
    return build(plugin, plugin.card.dims_from_config(config))


@pytest.fixture(scope="module", params=sorted(KINDS))
def tokenizer(request, tmp_path_factory):
    return tokenizers.load(KINDS[request.param](tmp_path_factory.mktemp("tokenizer")))


def generator_of(model, tokenizer, limit, size=8):
    return TextGenerator(BatchBackend(model, tokenizer.eos_ids, tokenizer.pad_id, size), tokenizer, limit)


def asked(prompts, **params):
    return [TextRequest(prompt, SamplingParams(**params), index) for index, prompt in enumerate(prompts)]


def ids(generations):
    return [generation.ids for generation in generations]


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_cached_equals_uncached(model, options):
    with_cache = generate(model, PROMPTS, options, [], 0)
    assert ids(with_cache) == ids(generate(model, PROMPTS, options, [], 0, use_cache=False))
    assert all(len(row) == 12 for row in ids(with_cache))


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_batched_equals_single(model, options):
    batched = ids(generate(model, PROMPTS, options, [], 0))
    single = [ids(generate(model, [prompt], options, [], 0, indices=[i]))[0] for i, prompt in enumerate(PROMPTS)]
    assert batched == single


def test_greedy_equals_a_plain_loop(model):
    sequence = list(PROMPTS[0])
    with paddle.no_grad():
        for _ in range(12):
            sequence.append(int(model(paddle.to_tensor([sequence])).numpy()[0, -1].argmax()))
    assert ids(generate(model, PROMPTS[:1], GREEDY, [], 0)) == [sequence[3:]]


def test_finished_rows_leave_the_batch_and_do_not_disturb_the_others(model):
    free = ids(generate(model, PROMPTS, GREEDY, [], 0))
    end = free[2][4]
    sizes = []
    original = model.hidden_states
    model.hidden_states = lambda x, *rest: (sizes.append(x.shape[0]), original(x, *rest))[1]
    try:
        rows = generate(model, PROMPTS, GREEDY, [end], 0)
    finally:
        del model.hidden_states
    for row, whole in zip(rows, free, strict=True):
        cut = whole.index(end) if end in whole else len(whole)
        assert row.ids == whole[:cut] and row.finish_reason == ("end" if end in whole else "length")
    alive = [sum(len(row.ids) + (row.finish_reason == "end") > step for row in rows) for step in range(len(sizes))]
    assert sizes == alive


def test_least_length_holds_back_the_end(model):
    free = ids(generate(model, PROMPTS[:1], GREEDY, [], 0))[0]
    options = SamplingParams(max_new_tokens=12, min_new_tokens=6)
    assert len(ids(generate(model, PROMPTS[:1], options, [free[0]], 0))[0]) >= 6


@given(text=st.text("abcx", max_size=30), cuts=st.lists(st.integers(0, 30)), stops=st.lists(st.text("abc", min_size=1)))
def test_stop_filter_passes_exactly_what_comes_before_the_first_stop(text, cuts, stops):
    borders = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[low:high] for low, high in zip(borders, borders[1:], strict=False)]
    stopper, shown = StopFilter(stops), ""
    for piece in pieces:
        shown += stopper.add(piece)
        if stopper.stopped:
            break
    else:
        shown += stopper.finish()
    # A stop string that is complete earlier in the stream wins over one that begins earlier.
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert shown == text
    else:
        assert stopper.stopped and not any(stop in shown for stop in stops)
        assert text.startswith(shown) and len(shown) <= min(ends)


def test_streamed_pieces_are_the_answer_and_stop_before_stop_strings(model, tokenizer):
    generator = generator_of(model, tokenizer, 256)
    prompts = [tokenizer.encode("hello"), tokenizer.encode("the quick")]
    whole = generator.generate(asked(prompts, max_new_tokens=40))
    stop = whole[0].text[6:9]
    pieces = {0: "", 1: ""}

    def take(index, piece):
        pieces[index] += piece

    stopped = generator.generate(asked(prompts, max_new_tokens=40, stop=stop), take)
    assert stopped[0].text == whole[0].text[: whole[0].text.index(stop)] and stopped[0].finish_reason == "stop"
    assert pieces == {i: answer.text for i, answer in enumerate(stopped)}
    assert whole[0].text == tokenizer.decode(whole[0].token_ids)
    usage = [(one.usage.prompt_tokens, one.usage.completion_tokens, one.usage.total_tokens) for one in whole]
    assert usage == [
        (len(p), len(one.token_ids), len(p) + len(one.token_ids)) for p, one in zip(prompts, whole, strict=True)
    ]
    assert [one.prompt_token_ids for one in whole] == prompts


def test_requests_of_one_batch_may_have_different_parameters(model, tokenizer):
    prompts = [tokenizer.encode("hello"), tokenizer.encode("the quick")] * 2
    params = [SamplingParams(max_new_tokens=n, sample=n > 4, seed=n) for n in (3, 3, 7, 5)]
    requests = [TextRequest(p, o, index) for index, (p, o) in enumerate(zip(prompts, params, strict=True))]
    together = generator_of(model, tokenizer, 256).generate(requests)
    assert together == [generator_of(model, tokenizer, 256).generate([request])[0] for request in requests]
    assert [one.usage.completion_tokens for one in together] == [3, 3, 7, 5]


def test_prompts_without_room_are_refused(model, tokenizer):
    generator = generator_of(model, tokenizer, 20)
    with pytest.raises(ConfigError, match="prompt 2 has 15 tokens; .* 20 positions .* max_new_tokens to 5 or less"):
        generator.generate(asked([[1], [1] * 15], max_new_tokens=10))
    with pytest.raises(ConfigError, match="prompt 1 is empty"):
        generator.generate(asked([[], [1]], max_new_tokens=10))
    with pytest.raises(ConfigError, match="the prompt is empty"):
        generator.generate(asked([[]], max_new_tokens=10))


def test_every_line_of_a_file_gets_a_line_in_order(model, tokenizer, tmp_path):
    lines = [{"src": "hello"}, {"src": ["the"], "tgt": ["dog"], "other": 1}, {"src": "quick brown"}]
    (tmp_path / "in.jsonl").write_text("\n\n".join(json.dumps(line) for line in lines))
    read = read_prompts(tmp_path / "in.jsonl")
    requests = asked([tokenizer.encode(line.conversation.turns[-1][0]) for line in read], max_new_tokens=5)
    generator = generator_of(model, tokenizer, 256, size=2)
    found = list(answer_rows(generator, read, requests))
    assert [place for place, _ in found] == [0, 1, 2]
    rows = [row for _, row in found]
    assert [row["src"] for row in rows] == ["hello", ["the"], "quick brown"] and rows[1]["tgt"] == ["dog"]
    assert [row["output"] for row in rows] == [output.text for output in generator.generate(requests)]
    assert list(answer_rows(generator, read, requests, done=[0, 2])) == [(1, rows[1])]


def test_what_cannot_be_answered_is_told_in_its_place_and_harms_no_other(model, tokenizer):
    prompts = [[1, 5], [1] * 300, [], [2, 9]]
    found = dict(generator_of(model, tokenizer, 256, size=4).outputs(asked(prompts, max_new_tokens=3)))
    assert [found[place].finish_reason == "error" for place in range(4)] == [False, True, True, False]
    assert "the prompt has 300 tokens" in found[1].error and "the prompt is empty" in found[2].error
    assert all(isinstance(found[place].cause, ConfigError) for place in (1, 2))
    assert found[3].token_ids == generate(model, [[2, 9]], SamplingParams(max_new_tokens=3), [], 0)[0].ids


def test_a_batch_that_fails_together_is_answered_one_by_one(tokenizer):
    class Choosy:
        """Refuses a batch that holds the token 7."""

        max_stable_length = None

        def begin(self, max_length, use_cache=True):
            return self

        past = 0

        def step(self, ids_BT, mask_BS, choose):
            if (ids_BT == 7).any():
                raise DataError("no sevens")
            return choose(np.eye(VOCAB)[ids_BT[:, -1] + 1])

        def select(self, rows):
            pass

    found = dict(generator_of(Choosy(), tokenizer, 0).outputs(asked([[5], [7], [90]], max_new_tokens=2)))
    assert not found[1].token_ids and isinstance(found[1].cause, DataError)
    assert [found[place].token_ids for place in (0, 2)] == [[6, 7], [91, 92]]
    assert [found[place].error for place in range(3)] == ["", "no sevens", ""]


def test_broken_questions_are_all_listed(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"src": 1}\n{"tgt": "x"}\n{"src": ["a", "b"]}\nx\n{"src": "fine"}\n')
    with pytest.raises(DataError) as caught:
        read_prompts(tmp_path / "in.jsonl")
    assert str(caught.value).startswith("4 lines cannot be used:")
    assert "in.jsonl:3: 'src' has 2 turns, so 'tgt' must have the first 1 answers" in str(caught.value)


def test_chat_remembers_until_it_is_reset(model, tmp_path, monkeypatch):
    folder = write_json(tmp_path)
    (folder / "chat_template.jinja").write_text(JINJA)
    generator = generator_of(model, tokenizers.load(folder), 256)
    lines = iter(["hello", "", "the dog", "/reset", "hello", "/quit", "never"])
    shown = []
    chat = Chat(generator, SamplingParams(max_new_tokens=6), None, lambda: next(lines, None), shown.append)
    prompts = []
    original = TextGenerator.generate

    def spy(self, requests, *rest):
        prompts.append(requests[0].prompt)
        return original(self, requests, *rest)

    monkeypatch.setattr(TextGenerator, "generate", spy)
    chat.run()
    assert len(prompts) == 3 and prompts[0] == prompts[2]
    assert prompts[1][: len(prompts[0])] == prompts[0] and len(prompts[1]) > len(prompts[0])
    assert next(lines) == "never" and "".join(shown).count("\n") >= 3


def test_a_chat_that_grows_too_long_forgets_its_oldest_turns_and_goes_on(model, tmp_path):
    folder = write_json(tmp_path)
    (folder / "chat_template.jinja").write_text(JINJA)
    generator = generator_of(model, tokenizers.load(folder), 64)
    lines = iter(["hello"] * 6 + ["the quick brown fox " * 20, "hello", "/quit"])
    shown = []
    chat = Chat(generator, SamplingParams(max_new_tokens=6), None, lambda: next(lines, None), shown.append)
    chat.run()
    assert 1 <= len(chat.turns) < 7 and chat.turns[-1][0] == "hello"
    assert sum("the message has" in piece for piece in shown) == 1


def test_draws_differ_between_rows_with_equal_prompts(model):
    rows = ids(generate(model, [PROMPTS[0]] * 4, SAMPLED, [], 0))
    assert len({tuple(row) for row in rows}) == 4
    assert rows == ids(generate(model, [PROMPTS[0]] * 4, SAMPLED, [], 0))
    assert np.shape(rows) == (4, 12)
