"""Steps in one native call, against the decoder's definition in float64."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from kit import packed_toys
from kit.packed_toys import (
    FORMS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    WIDTH,
    Text,
    assert_defined,
    batch,
    build,
    expected,
    in_pieces,
    run,
    several,
)

from llmctl.errors import ConfigError
from llmctl.infer.executors.base import BLOCK
from llmctl.infer.executors.native import CACHES, NativeExecutor, available
from llmctl.infer.packed.linear import JoinedLinear, codes_of, pack, pack_codes, unpack
from llmctl_ops import library

pytestmark = pytest.mark.skipif(not available(), reason="no compiled kernels here")
ROPE_FORM = FORMS["rope and shared heads"]


def _whole(texts):
    return [[(n, 0, len(text.ids))] for n, text in enumerate(texts)]


@pytest.fixture(params=library.LEVELS)
def level(request, monkeypatch):
    """Makes the executor run with the kernels of one instruction set."""
    chosen = library.open_library(library.FILE, request.param)
    if chosen.handle is None:
        pytest.skip(f"no {request.param} kernels here")
    monkeypatch.setattr(library, "load", lambda: chosen)


@pytest.mark.parametrize("name", FORMS)
def test_steps_of_pieces_give_what_the_form_defines(name, level):
    model = build(FORMS[name])
    texts = several()
    if name == "two positions and contexts":
        texts[0].context, texts[2].context = 5, 13
    assert_defined(run(NativeExecutor(model, 64), model, texts, in_pieces(texts)), texts, model)


# Heads that share keys pass the rows of a tile at 50; widths are and are not whole vectors and several of them.
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(2, 2, 64), (14, 2, 80), (50, 1, 128), (7, 7, 20)])
def test_heads_of_any_number_and_width(heads, kv_heads, width, monkeypatch, level):
    for name, value in {"HEADS": heads, "KV_HEADS": kv_heads, "WIDTH": width}.items():
        monkeypatch.setattr(packed_toys, name, value)
    model = build(ROPE_FORM, adapters=1)
    texts = several()
    texts[2].adapter = 0
    assert_defined(run(NativeExecutor(model, 64), model, texts, in_pieces(texts)), texts, model, 5e-5)
    for kv, tolerance in (("float16", 1e-2), ("int8", 0.1)):
        found = run(NativeExecutor(model, 64, kv), model, texts, in_pieces(texts))
        assert_defined(found, texts, model, tolerance)


@pytest.mark.parametrize("kv", CACHES)
@pytest.mark.parametrize("name", ["rope and shared heads", "penalties", "windows", "experts"])
def test_what_a_sequence_yields_depends_on_nothing_else_in_its_steps(name, kv, level):
    model = build(FORMS[name], adapters=2)
    texts = several()
    texts[1].adapter = 1
    executor = NativeExecutor(model, 64, kv)
    alone, mixed = (run(executor, model, texts, schedule) for schedule in (_whole(texts), in_pieces(texts)))
    for one, other in zip(alone, mixed, strict=True):
        np.testing.assert_array_equal(one, other)


def test_adapters_belong_to_sequences_and_to_their_experts(level):
    for form in ("experts", "rope and shared heads"):
        model = build(FORMS[form], adapters=2)
        texts = several()
        for text, adapter in zip(texts, (1, -1, 0), strict=True):
            text.adapter = adapter
        assert np.abs(expected(model, texts[0]) - expected(model, Text(texts[0].ids))).max() > 0.1
        assert_defined(run(NativeExecutor(model, 64), model, texts, in_pieces(texts)), texts, model)


def test_virtual_tokens_are_seen_by_every_token(level):
    model = build(ROPE_FORM, prefix=19)
    texts = several()
    assert_defined(run(NativeExecutor(model, 64), model, texts, in_pieces(texts)), texts, model)


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4"])
def test_packed_weights_count_as_what_they_stand_for(kind, level):
    model = build(ROPE_FORM, kind)
    texts = several(1)
    # Rows are rounded to 8 bits where they meet integer codes.
    tolerance = 2e-5 if kind == "bfloat16" else 0.1
    assert_defined(run(NativeExecutor(model, 64), model, texts, _schedule_of_one()), texts, model, tolerance)


def test_a_weight_of_several_kinds_gives_what_its_codes_give_in_one(level):
    """To the last bit; the first part does not fill its panel."""
    model = build({**FORMS["experts"], "bias": True}, "int4", adapters=2)
    texts = several()
    texts[1].adapter = 1

    def wide(linear):
        codes, scales, _ = codes_of(linear.weight)
        return dataclasses.replace(linear, weight=pack_codes(codes, scales, None, "int8", 0))

    def mixed(linear):
        codes, scales, _ = codes_of(linear.weight)
        parts = [pack_codes(codes[:, part], scales[:, part], None, kind, 0)
                 for kind, part in (("int4", slice(13)), ("int8", slice(13, None)))]  # fmt: skip
        return dataclasses.replace(linear, weight=JoinedLinear(tuple(parts)))

    found = []
    for change in (mixed, wide):
        layers = tuple(
            dataclasses.replace(one, qkv=change(one.qkv), out=change(one.out), up=tuple(map(change, one.up)),
                                down=tuple(map(change, one.down)))
            for one in model.layers
        )  # fmt: skip
        changed = dataclasses.replace(model, layers=layers)
        found.append(run(NativeExecutor(changed, 64), changed, texts, in_pieces(texts)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def _schedule_of_one():
    return [[(0, 0, 7)], [(0, 7, 21)]]


def test_token_vectors_may_have_16_bits():
    model = build(ROPE_FORM)
    bits = (model.embed.view(np.uint32) >> 16).astype(np.uint16)
    half = model.embed.astype(np.float16)
    for table, wide in ((bits, (bits.astype(np.uint32) << 16).view(np.float32)), (half, half.astype(np.float32))):
        stored, meant = (dataclasses.replace(model, embed=values) for values in (table, wide))
        texts = several(1)
        assert_defined(run(NativeExecutor(stored, 64), stored, texts, _schedule_of_one()), texts, meant)


def test_keys_and_values_in_8_bits_change_little(level):
    model = build(ROPE_FORM)
    texts = several()
    found = run(NativeExecutor(model, 64, "int8"), model, texts, in_pieces(texts))
    for logits, text in zip(found, texts, strict=True):
        wanted = expected(model, text)
        assert 0 < np.abs(logits - wanted).max() < 0.03 * np.abs(wanted).max()


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "int8", "int4"])
@pytest.mark.parametrize("name", ["rope and shared heads", "norms after and projections"])
def test_token_vectors_may_be_outputs_of_a_packed_weight(kind, name, level):
    model = build(FORMS[name])
    tied = dataclasses.replace(model, embed=pack(model.embed.T, kind, 32 if kind == "int4" else 0))
    meant = dataclasses.replace(model, embed=np.ascontiguousarray(unpack(tied.embed).T))
    texts = several(1)
    found = run(NativeExecutor(tied, 64), tied, texts, _schedule_of_one())
    assert_defined(found, texts, meant)
    np.testing.assert_array_equal(found[0], run(NativeExecutor(meant, 64), meant, texts, _schedule_of_one())[0])


def test_keys_and_values_in_16_bits_count_as_the_nearest_halves(level):
    model = build(ROPE_FORM)
    texts = several()
    found = run(NativeExecutor(model, 64, "float16"), model, texts, in_pieces(texts))
    for logits, text in zip(found, texts, strict=True):
        wanted = expected(model, text)
        assert 0 < np.abs(logits - wanted).max() < 5e-4 * np.abs(wanted).max()


# Values of every size: ties, less than the least normal half and half of the least one, and beyond the largest.
SIZES = np.array([1, 2049, 4098 / 4096, 4099 / 4096, -65504, 65519.9, 1e6, -3e38, 6e-5, 6.1e-5, 2.0**-24, 2.0**-25, 1.1 * 2.0**-25,
                  -1e-9, 0, 5.960464477539063e-8 * 2.5], np.float32)  # fmt: skip


def test_virtual_tokens_are_kept_as_the_nearest_halves(level):
    """A token that sees one position takes its value as it is."""
    model = build(ROPE_FORM)
    model = dataclasses.replace(
        model, layers=model.layers[:1], graph=dataclasses.replace(model.graph, layers=({},), score_scales=())
    )
    pairs = np.zeros((1, 2, 1, KV_HEADS, WIDTH), np.float32)
    pairs[0, 1, 0].flat = np.resize(SIZES, KV_HEADS * WIDTH)
    nearest = np.clip(pairs, -65504, 65504).astype(np.float16).astype(np.float32)
    found = []
    for kv, values in (("float16", pairs), ("float32", nearest)):
        executor = NativeExecutor(model, 4, kv)
        executor.allocate(2)
        executor.write_virtual_tokens(np.array([0]), values)
        step = batch(model, [(Text([3, 4]), 1, 2)], np.array([[0, 1]]))
        found.append(
            executor.run(
                dataclasses.replace(step, attend_begin_T=np.array([0], np.int32), attend_end_T=np.array([1], np.int32))
            ).copy()
        )
    np.testing.assert_array_equal(*found)


# Values are filled up to 16 elements; 8 bits take a scale for each key and value.
@pytest.mark.parametrize(
    ("kv", "bytes_of_place"), [("float32", 4 * (WIDTH + 16)), ("float16", 2 * (WIDTH + 16)), ("int8", WIDTH + 16 + 8)]
)
def test_a_copied_block_stands_for_its_source(kv, bytes_of_place, level):
    model = build(ROPE_FORM)
    executor, (text,) = NativeExecutor(model, 64, kv), several(1)
    assert executor.block_bytes == LAYERS * BLOCK * KV_HEADS * bytes_of_place
    executor.allocate(4)
    first, second = np.array([[0, 1]]), np.array([[3, 2]])
    whole = executor.run(batch(model, [(text, 0, 21)], first))[20:].copy()
    executor.run(batch(model, [(text, 0, 20)], first))
    executor.copy(0, 3)
    executor.copy(1, 2)
    np.testing.assert_array_equal(executor.run(batch(model, [(text, 20, 21)], second)), whole)


def test_only_the_wanted_logits_are_given(level):
    for form in ("rope and shared heads", "norms carried", "norms after and projections", "experts"):
        model = build(FORMS[form])
        executor, (text,) = NativeExecutor(model, 64), several(1)
        executor.allocate(2)
        step = batch(model, [(text, 0, 21)], np.array([[0, 1]]))
        every = executor.run(step).copy()
        some, none = (dataclasses.replace(step, logits_indices_L=np.array(w, np.int32)) for w in ([3, 20], []))
        np.testing.assert_array_equal(executor.run(some), every[[3, 20]])
        assert executor.run(none).shape == (0, 37)


LONG = 1300


def _long(threads, name, monkeypatch, kv="float32"):
    """Logits of the last tokens of a long text, by steps of 300 tokens and then single ones."""
    library.set_threads(threads)
    model = build({**FORMS[name], **({"window": 700} if name == "windows" else {})})
    text = Text(np.random.default_rng(2).integers(0, 37, LONG).tolist())
    executor = NativeExecutor(model, 300, kv)
    executor.allocate(90)
    blocks = np.random.default_rng(3).permutation(90)[None]
    cuts = [*range(0, LONG - 3, 300), LONG - 3, LONG - 2, LONG - 1, LONG]
    steps = [batch(model, [(text, a, b)], blocks) for a, b in zip(cuts, cuts[1:], strict=False)]
    found = [executor.run(step).copy() for step in steps]
    return model, text, np.concatenate(found)


@pytest.mark.parametrize("name", ["rope and shared heads", "penalties", "windows"])
def test_long_texts_are_cut_into_spans_of_keys_alike_by_any_number_of_threads(name, monkeypatch):
    try:
        (model, text, one), (*_, two) = (_long(threads, name, monkeypatch) for threads in (1, 2))
    finally:
        library.set_threads(2)
    np.testing.assert_array_equal(one, two)
    rows = [0, 511, 512, 900, *range(LONG - 5, LONG)]
    np.testing.assert_allclose(one[rows], expected(model, text)[rows], atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("kv", CACHES)
def test_what_was_left_in_a_block_touches_nobody(kv, level):
    model = build(ROPE_FORM)
    executor, (text,) = NativeExecutor(model, 64, kv), several(1)
    executor.allocate(2)
    step = batch(model, [(text, 0, 21)], np.array([[0, 1]]))
    clean = executor.run(step).copy()
    executor.write_virtual_tokens(
        np.array([1, 0]), np.full((LAYERS, 2, 2 * BLOCK, KV_HEADS, WIDTH), np.nan, np.float32)
    )
    np.testing.assert_array_equal(executor.run(step), clean)


def test_blocks_that_a_window_has_left_may_be_gone(level):
    model = build(FORMS["windows"])
    executor, (text,) = NativeExecutor(model, 64), several(1)
    executor.allocate(2)
    executor.run(batch(model, [(text, 0, 20)], np.array([[1, 0]])))
    kept, gone = (batch(model, [(text, 20, 21)], np.array([table])) for table in ([1, 0], [-1, 0]))
    wanted = executor.run(kept).copy()
    np.testing.assert_array_equal(executor.run(gone), wanted)
    np.testing.assert_allclose(wanted[0], expected(model, text)[20], atol=2e-5, rtol=2e-5)


BAD = {
    "token 1: id is not in the vocabulary": {"ids_T": [0, 37]},
    "token 1: sequence is not a row of the block tables": {"sequence_T": [0, 1]},
    "token 1: kv_position is not in the blocks": {"kv_position_T": [0, 32]},
    "token 1: attention range is empty": {"attend_begin_T": [0, 2]},
    "not within the blocks of its sequence": {"attend_end_T": [1, 33]},
    "token 1: block index of its sequence is out of range": {"attend_end_T": [1, 32]},
    "frequencies are valid for 100": {"position_T": [0, 100]},
    "token 0: position is negative": {"position_T": [-1, 0]},
    "token 1: position is negative or beyond the table": {"position_T": [0, 2**31 - 1]},
    "sequence 0: adapter index out of range": {"adapter_R": [0]},
    "logits index 0: not a token of the step": {"logits_indices_L": [2]},
    "logits index 1: .* not greater than the previous": {"logits_indices_L": [1, 0]},
    "differ in length": {"kv_position_T": [0]},
    "a block table and an adapter": {"adapter_R": [-1, -1]},
}


@pytest.mark.parametrize("begins", [[0, 32], [32, 0]])
def test_blocks_between_what_two_tokens_of_a_sequence_see_must_be_there(begins):
    model = build(ROPE_FORM)
    executor = NativeExecutor(model, 2)
    executor.allocate(3)
    step = batch(model, [(Text([3] * 34), 32, 34)], np.array([[0, 2**30, 2]]))
    ends = np.array([begin + 1 for begin in begins], np.int32)
    with pytest.raises(ValueError, match="block index of its sequence is out of range"):
        executor.run(dataclasses.replace(step, attend_begin_T=np.array(begins, np.int32), attend_end_T=ends))


@pytest.mark.parametrize("blocks", [2**44, 2**60, 2**64 + 1])
def test_a_cache_that_no_memory_holds_is_refused(blocks):
    executor = NativeExecutor(build(ROPE_FORM), 2)
    with pytest.raises(MemoryError, match="no memory"):
        executor.allocate(blocks)
    with pytest.raises(ValueError, match="block index out of range of the cache"):
        executor.copy(0, 1)


@pytest.mark.parametrize("message", BAD)
def test_a_step_that_would_leave_the_model_or_the_cache_is_refused_and_the_next_one_runs(message):
    stable = 100 if "100" in message else None
    form = {**ROPE_FORM, "rope": dataclasses.replace(ROPE_FORM["rope"], max_stable_length=stable)}
    model = build(form)
    executor, text = NativeExecutor(model, 2), Text([3, 4])
    executor.allocate(2)
    good = batch(model, [(text, 0, 2)], np.array([[1, 9]]))
    wanted = executor.run(good).copy()
    changed = {name: np.array(values, np.int32) for name, values in BAD[message].items()}
    with pytest.raises(ValueError, match=message):
        executor.run(dataclasses.replace(good, **changed))
    with pytest.raises(ValueError, match="the step has no tokens, more than the decoder was opened for"):
        executor.run(batch(model, [(Text([1, 2, 3]), 0, 3)], np.array([[1, 0]])))
    np.testing.assert_array_equal(executor.run(good), wanted)


def test_blocks_that_are_none_are_refused():
    model = build(ROPE_FORM)
    executor = NativeExecutor(model, 2)
    executor.allocate(2)
    pairs = np.zeros((LAYERS, 2, 17, KV_HEADS, WIDTH), np.float32)
    for act in (lambda: executor.copy(0, 2), lambda: executor.write_virtual_tokens(np.array([0, 2]), pairs)):
        with pytest.raises(ValueError, match="block index out of range of the cache"):
            act()
    with pytest.raises(ValueError, match="do not hold 17"):
        executor.write_virtual_tokens(np.array([0]), pairs)
    with pytest.raises(ValueError, match="keys and values are"):
        executor.write_virtual_tokens(np.array([0, 1]), pairs[:1])


def test_models_that_do_not_fit_their_graph_are_refused():
    model = build(ROPE_FORM)
    short = dataclasses.replace(model.layers[1], qkv=model.layers[1].out)
    qkv, narrow = model.layers[1].qkv, np.ones((HIDDEN // 2, 1), np.float32)
    parts = pack(unpack(qkv.weight)[:, 1:], "int8"), pack(narrow, "int8")
    other = dataclasses.replace(model.layers[1], qkv=dataclasses.replace(qkv, weight=JoinedLinear(parts)))
    for wrong, message in (
        (dataclasses.replace(model, layers=(model.layers[0], other)), "a linear does not have the shape"),
        (dataclasses.replace(model, layers=(model.layers[0], short)), "linear"),
        (dataclasses.replace(model, embed=model.embed[:-1]), "embed"),
        (dataclasses.replace(model, final_norm=type(model.final_norm)(model.embed[0, :3])), "norm"),
        (dataclasses.replace(model, graph=dataclasses.replace(model.graph, slopes=(1.0,))), "slopes"),
    ):
        with pytest.raises(ValueError, match=message):
            NativeExecutor(wrong)


@pytest.mark.parametrize(
    ("options", "message"), [({"kv": "int3"}, "one of float16, float32, int8"), ({"max_tokens": 0}, "at least 1")]
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        NativeExecutor(build(ROPE_FORM), **options)


def test_without_kernels_the_error_says_why(monkeypatch):
    monkeypatch.setattr(library, "load", lambda: library.open_library(library.FILE, "reference"))
    with pytest.raises(ConfigError, match="LLMCTL_OPS=reference"):
        NativeExecutor(build(ROPE_FORM))


@pytest.mark.parametrize("kv", CACHES)
def test_a_number_that_is_none_stays_in_its_sequence(kv, level):
    model = build(ROPE_FORM)
    embed = model.embed.copy()
    embed[36] = np.nan
    model = dataclasses.replace(model, embed=embed)
    texts = [Text([3, 4, 5, 6]), Text([3, 36, 5, 6])]
    executor = NativeExecutor(model, 8, kv)
    together = run(executor, model, texts, [[(0, 0, 4), (1, 0, 4)]])
    alone = run(executor, model, texts[:1], [[(0, 0, 4)]])
    np.testing.assert_array_equal(together[0], alone[0])
    assert np.isnan(together[1][1:]).all()


@pytest.mark.parametrize("count", ["1", "3"])
def test_kernels_use_the_threads_of_the_process_without_paddle(count):
    code = "from llmctl.infer.executors import native; native.available(); from llmctl_ops import library; print(library.set_threads(1))"
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    found = subprocess.check_output([sys.executable, "-c", code], text=True, env={**environ, "LLMCTL_THREADS": count})
    assert found.strip() == count
