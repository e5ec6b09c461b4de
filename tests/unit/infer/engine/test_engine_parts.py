"""Parts of the engine alone: blocks and their keys, sizes of caches, guesses, places."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.engine_toys import CLOSE, END, MARK, MODELS, ask, engine_of, idle
from kit.paged_toy import VOCAB, ToyExecutor, answer, graph, prefix

from llmctl import runtime
from llmctl.errors import ConfigError
from llmctl.infer import loader
from llmctl.infer.backend import EngineBackend
from llmctl.infer.engine.block_manager import Blocks, Row, Tables, first_key, next_key
from llmctl.infer.engine.kv_budget import blocks_for
from llmctl.infer.engine.limits import step_tokens_for
from llmctl.infer.engine.positions import Context, Places
from llmctl.infer.engine.prompt_lookup import LONGEST, Lookup
from llmctl.infer.engine.sequence import Answering, Part
from llmctl.infer.sampling import SamplingParams
from llmctl.infer.sampling.sampler import Sampler
from llmctl.infer.sampling.single import choose, generator_for
from llmctl.runtime.memory import free_memory


@given(st.lists(st.tuples(st.sampled_from(["take", "hold", "release", "publish", "find"]), st.integers(0, 9))))
def test_every_block_is_free_held_or_idle(actions):
    blocks, holders, keys = Blocks(4), {}, {}
    for action, choice in actions:
        held = sorted(holders)
        block = held[choice % len(held)] if held else None
        key = bytes([choice])
        if action == "take":
            taken = blocks.take()
            assert (taken is None) == (len(holders) == 4) and taken not in holders
            if taken is not None:
                holders[taken] = 1
                keys = {key: kept for key, kept in keys.items() if kept != taken}
        elif action == "find":
            found = blocks.find(key)
            assert found == keys.get(key)
            if found is not None:
                holders[found] = holders.get(found, 0) + 1
        elif block is None:
            continue
        elif action == "hold":
            blocks.hold(block)
            holders[block] += 1
        elif action == "publish" and holders[block] == 1 and block not in keys.values():
            kept = blocks.publish(block, key)
            assert kept == keys.get(key, block)
            keys[key] = kept
            if kept != block:
                del holders[block]
                holders[kept] = holders.get(kept, 0) + 1
        elif action == "release":
            blocks.release(block)
            holders[block] -= 1
            holders = {block: count for block, count in holders.items() if count}
        assert blocks.used == len(holders) and blocks.available == 4 - len(holders)
        assert all(blocks.shared(block) == (count > 1) for block, count in holders.items())


def test_blocks_without_a_text_go_first_then_those_that_were_unused_longest():
    blocks = Blocks(4)
    one, two, three, four = (blocks.take() for _ in range(4))
    for block, key in ((one, b"1"), (two, b"2"), (three, b"3")):
        blocks.publish(block, key)
    for block in (two, one, four, three):
        blocks.release(block)
    blocks.release(blocks.find(b"2"))
    assert [blocks.take() for _ in range(5)] == [four, one, three, two, None]
    assert [blocks.find(key) for key in (b"1", b"2", b"3")] == [None] * 3


def test_keys_depend_on_all_tokens_before_on_the_adapter_and_on_the_context():
    keys = {
        next_key(next_key(first_key(adapter, context), before), [3, 4])
        for adapter in (-1, 0)
        for context in ((), (1,), (1, 2))
        for before in ([1, 2], [2, 1])
    }
    assert len(keys) == 12


def test_blocks_fit_the_limit_and_one_sequence_at_least():
    assert blocks_for("1000B", 300) == 3
    assert blocks_for("50%", 300, free=2000) == 3
    assert blocks_for("1GiB", 1 << 20, tokens=1024 * 16) == 1024
    with pytest.raises(ConfigError, match="room for 48 tokens; one sequence needs 49, which takes 1200 bytes"):
        blocks_for("1000B", 300, tokens=49)
    with pytest.raises(ConfigError, match="a cache of 10% of 2000 free bytes has room for 0 tokens"):
        blocks_for("10%", 300, free=2000)
    with pytest.raises(ConfigError, match="cache_memory='much' is not a size; write 2GB"):
        blocks_for("much", 300)
    assert blocks_for("50%", free_memory() // 100) in range(30, 70)


def test_on_a_gpu_the_free_memory_is_that_of_the_gpu(monkeypatch):
    gpu = SimpleNamespace(
        get_device_properties=lambda: SimpleNamespace(total_memory=1000), memory_allocated=lambda: 400
    )
    device = SimpleNamespace(device=SimpleNamespace(cuda=gpu))
    monkeypatch.setattr(runtime, "device", lambda: "gpu")
    monkeypatch.setattr(runtime, "import_paddle", lambda purpose: device)
    assert free_memory() == 600 and blocks_for("50%", 100) == 3


def test_virtual_tokens_that_the_cache_does_not_hold_are_refused():
    with pytest.raises(ConfigError, match="2 blocks does not hold 33 virtual tokens, which take 3"):
        engine_of(MODELS["causal"], ToyExecutor(), blocks=2, virtual=prefix(33))


def plain_guess(ids, count):
    """The latest earlier place of the last tokens, by looking through all of it."""
    for size in range(min(LONGEST, len(ids)), 0, -1):
        for end in range(len(ids) - 1, size - 1, -1):
            if ids[end - size : end] == ids[-size:]:
                return ids[end : end + count]
    return []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 6), st.integers(1, 3))
def test_guesses_are_what_followed_the_latest_earlier_place(ids, count, step):
    growing = ids[:1]
    lookup = Lookup(growing)
    for start in range(1, len(ids), step):
        assert lookup.guess(count) == plain_guess(growing, count)
        growing += ids[start : start + step]
    assert lookup.guess(count) == plain_guess(growing, count)


def test_tokens_see_what_comes_before_them_within_the_window():
    place_T = np.arange(3, 9, dtype=np.int32)
    position, second, begin, end = Places(MODELS["window"], 2).arrays(place_T, [])
    assert second is None and position.tolist() == place_T.tolist()
    assert begin.tolist() == [0, 0, 1, 2, 3, 4] and end.tolist() == [4, 5, 6, 7, 8, 9]


def test_a_context_is_seen_as_a_whole_and_answers_stand_for_its_mark():
    places = Places(MODELS["contexts"], 2)
    ids = [9, MARK, 8, CLOSE, 7, 6]
    assert places.context(ids) == Context(3, 1)
    place_T = np.arange(2, 8, dtype=np.int32)
    position, second, begin, end = places.arrays(place_T, [(slice(0, 6), Context(3, 1))])
    assert position.tolist() == [0, 1, 2, 1, 1, 1] and second.tolist() == [0, 0, 0, 1, 2, 3]
    assert begin.tolist() == [0] * 6 and end.tolist() == [5, 5, 5, 6, 7, 8]


def test_an_engine_that_is_opened_takes_contexts_as_long_as_the_model_does(monkeypatch):
    model = replace(MODELS["contexts"], max_positions=1000)
    packed = SimpleNamespace(graph=model, prefix=None, adapters=[])
    monkeypatch.setattr(loader, "executor_of", lambda packed, kv, step_tokens: ToyExecutor())
    request = ask([5] * 900 + [MARK, CLOSE], 4)
    engine = loader.engine_of(packed, END, [906], memory="1MiB")
    assert engine.generate([request]) == [answer(model, request, END)]


def test_what_a_callback_raises_reaches_whoever_runs_the_requests():
    def fail(happened):
        raise BrokenPipeError

    engine = engine_of(graph(), ToyExecutor())
    with pytest.raises(BrokenPipeError):
        list(EngineBackend(engine).run([ask([5, 6]), ask([5, 6], on_event=fail)]))
    engine.step()
    assert idle(engine)


@pytest.mark.parametrize("refused", [3, 4])
def test_requests_behind_many_that_are_refused_are_answered(refused):
    requests = [ask([])] * refused + [ask([5, 6])]
    answers = dict(EngineBackend(engine_of(graph(), ToyExecutor()), ahead=2).run(requests))
    assert sorted(answers) == list(range(refused + 1))
    assert [answers[place].finish_reason for place in range(refused)] == ["error"] * refused
    assert all(isinstance(answers[place].cause, ConfigError) for place in range(refused))
    assert answers[refused] == answer(graph(), requests[-1], END)


@given(
    seed=st.integers(0, 2**32), options=st.builds(
        SamplingParams, sample=st.booleans(), temperature=st.sampled_from([0.3, 1.0, 2.5]),
        top_k=st.sampled_from([0, 1, 4, 99]), top_p=st.sampled_from([0.3, 0.9, 1.0]), min_p=st.sampled_from([0.0, 0.05, 0.5]),
        repetition_penalty=st.sampled_from([0.7, 1.0, 1.5]), presence_penalty=st.sampled_from([-0.5, 0.0, 1.0]),
        frequency_penalty=st.sampled_from([0.0, 0.4]), min_new_tokens=st.sampled_from([0, 2, 9]),
    ),
)  # fmt: skip
def test_the_engine_chooses_as_batches_of_the_dynamic_layer_do(seed, options):
    """With guesses: each row as if those before it had come true."""
    draws = np.random.default_rng(seed)
    logits_LV = draws.normal(0, 2, (4, VOCAB)).astype(np.float32)
    prompt, drafts = draws.integers(0, VOCAB, 9).tolist(), draws.integers(0, VOCAB, 3).tolist()
    tables = Tables(ToyExecutor(), 4)
    job = Answering(1, ask(prompt, draft=3), Row([*prompt]), tables, END)
    job.request = replace(job.request, options=options)
    chosen = Sampler(VOCAB).choose(logits_LV, job.choices(Part(job, job.rows[0], 9, drafts)))
    own, ids = generator_for(options, 0), [*prompt]
    for generated, logits_V in enumerate(logits_LV):
        assert chosen.token_L[generated] == choose(logits_V, ids, generated, options, END, own)
        ids += drafts[generated : generated + 1]


def test_steps_are_large_enough_for_contexts():
    assert step_tokens_for(graph()) == 512 and step_tokens_for(graph(), most_rows=600) == 601
    contexts = MODELS["contexts"].prefix_lm
    assert step_tokens_for(graph(prefix_lm=contexts, max_positions=1000)) == 1064
