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
from llmctl.infer.engine.block_manager import BlockManager
from llmctl.infer.engine.block_pool import BlockPool, block_hash, root_hash
from llmctl.infer.engine.generation import GenerationState
from llmctl.infer.engine.kv_budget import blocks_for
from llmctl.infer.engine.limits import step_tokens_for
from llmctl.infer.engine.positions import BidirectionalPrefix, PositionRule
from llmctl.infer.engine.prompt_lookup import MAX_NGRAM, PromptLookup
from llmctl.infer.engine.request_state import ScheduledChunk
from llmctl.infer.engine.sequence import Sequence
from llmctl.infer.sampling import SamplingParams
from llmctl.infer.sampling.sampler import Sampler
from llmctl.infer.sampling.single import choose, generator_for
from llmctl.runtime.memory import free_memory


@given(st.lists(st.tuples(st.sampled_from(["allocate", "acquire", "release", "cache", "find"]), st.integers(0, 9))))
def test_every_block_is_free_cached_or_referred_to(actions):
    pool, references, hashes = BlockPool(4), {}, {}
    for action, choice in actions:
        held = sorted(references)
        block = held[choice % len(held)] if held else None
        key = bytes([choice])
        if action == "allocate":
            taken = pool.allocate()
            assert (taken is None) == (len(references) == 4) and taken not in references
            if taken is not None:
                references[taken] = 1
                hashes = {key: kept for key, kept in hashes.items() if kept != taken}
        elif action == "find":
            found = pool.find(key)
            assert found == hashes.get(key)
            if found is not None:
                references[found] = references.get(found, 0) + 1
        elif block is None:
            continue
        elif action == "acquire":
            pool.acquire(block)
            references[block] += 1
        elif action == "cache" and references[block] == 1 and block not in hashes.values():
            kept = pool.cache_block(block, key)
            assert kept == hashes.get(key, block)
            hashes[key] = kept
            if kept != block:
                del references[block]
                references[kept] = references.get(kept, 0) + 1
        elif action == "release":
            pool.release(block)
            references[block] -= 1
            references = {block: count for block, count in references.items() if count}
        assert pool.num_used == len(references) and pool.num_free == 4 - len(references)
        assert all(pool.is_shared(block) == (count > 1) for block, count in references.items())


def test_blocks_without_a_hash_go_first_then_those_that_were_unused_longest():
    pool = BlockPool(4)
    one, two, three, four = (pool.allocate() for _ in range(4))
    for block, key in ((one, b"1"), (two, b"2"), (three, b"3")):
        pool.cache_block(block, key)
    for block in (two, one, four, three):
        pool.release(block)
    pool.release(pool.find(b"2"))
    assert [pool.allocate() for _ in range(5)] == [four, one, three, two, None]
    assert [pool.find(key) for key in (b"1", b"2", b"3")] == [None] * 3


def test_keys_depend_on_all_tokens_before_on_the_adapter_and_on_the_context():
    keys = {
        block_hash(block_hash(root_hash(adapter, context), before), [3, 4])
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


def plain_lookup(ids, count):
    """The latest earlier place of the last tokens, by looking through all of it."""
    for size in range(min(MAX_NGRAM, len(ids)), 0, -1):
        for end in range(len(ids) - 1, size - 1, -1):
            if ids[end - size : end] == ids[-size:]:
                return ids[end : end + count]
    return []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 6), st.integers(1, 3))
def test_draft_tokens_are_what_followed_the_latest_earlier_place(ids, count, step):
    growing = ids[:1]
    lookup = PromptLookup(growing)
    for start in range(1, len(ids), step):
        assert lookup.propose(count) == plain_lookup(growing, count)
        growing += ids[start : start + step]
    assert lookup.propose(count) == plain_lookup(growing, count)


def test_tokens_see_what_comes_before_them_within_the_window():
    kv_position_T = np.arange(3, 9, dtype=np.int32)
    position, second, begin, end = PositionRule(MODELS["window"], 2).arrays(kv_position_T, [])
    assert second is None and position.tolist() == kv_position_T.tolist()
    assert begin.tolist() == [0, 0, 1, 2, 3, 4] and end.tolist() == [4, 5, 6, 7, 8, 9]


def test_a_context_is_seen_as_a_whole_and_answers_stand_for_its_mark():
    rule = PositionRule(MODELS["contexts"], 2)
    ids = [9, MARK, 8, CLOSE, 7, 6]
    assert rule.prefix(ids) == BidirectionalPrefix(3, 1)
    kv_position_T = np.arange(2, 8, dtype=np.int32)
    position, second, begin, end = rule.arrays(kv_position_T, [(slice(0, 6), BidirectionalPrefix(3, 1))])
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
    """With draft tokens: each row as if those before it had been accepted."""
    draws = np.random.default_rng(seed)
    logits_LV = draws.normal(0, 2, (4, VOCAB)).astype(np.float32)
    prompt, drafts = draws.integers(0, VOCAB, 9).tolist(), draws.integers(0, VOCAB, 3).tolist()
    manager = BlockManager(ToyExecutor(), 4)
    state = GenerationState(1, ask(prompt, draft=3), Sequence([*prompt]), manager, END)
    state.request = replace(state.request, options=options)
    chosen = Sampler(VOCAB).choose(
        logits_LV, state.sampler_inputs(ScheduledChunk(state, state.sequences[0], 9, drafts))
    )
    own, ids = generator_for(options, 0), [*prompt]
    for generated, logits_V in enumerate(logits_LV):
        assert chosen.token_L[generated] == choose(logits_V, ids, generated, options, END, own)
        ids += drafts[generated : generated + 1]


def test_steps_are_large_enough_for_contexts():
    assert step_tokens_for(graph()) == 512 and step_tokens_for(graph(), max_sequences=600) == 601
    contexts = MODELS["contexts"].prefix_lm
    assert step_tokens_for(graph(prefix_lm=contexts, max_positions=1000)) == 1064
