"""Steps composed of paddle's operations, against the decoder's definition in float64."""

import inspect

import numpy as np
import paddle
import pytest
from kit.packed_toys import (
    FORMS,
    KV_HEADS,
    LAYERS,
    WIDTH,
    Text,
    assert_defined,
    batch,
    blocks_for,
    build,
    expected,
    in_pieces,
    run,
    several,
)

from llmctl import runtime
from llmctl.errors import ConfigError
from llmctl.infer import loader
from llmctl.infer.engine.engine import Engine
from llmctl.infer.executors import native, paddle_ops
from llmctl.infer.executors.attention_metadata import AttentionMetadata
from llmctl.infer.executors.base import BLOCK
from llmctl.infer.executors.native import NativeExecutor, available
from llmctl.infer.executors.paddle import PaddleExecutor
from llmctl.infer.packed.linear import pack, unpack
from llmctl.infer.packed.model import Linear
from llmctl.infer.request import Request
from llmctl.infer.sampling import SamplingParams
from llmctl_ops import cuda


@pytest.mark.parametrize("name", FORMS)
def test_steps_of_pieces_give_what_the_form_defines(name):
    model = build(FORMS[name])
    texts = several()
    if name == "two positions and contexts":
        texts[0].context, texts[2].context = 5, 13
    assert_defined(run(PaddleExecutor(model), model, texts, in_pieces(texts)), texts, model)


def test_adapters_belong_to_sequences_and_to_their_experts():
    model = build(FORMS["experts"], adapters=2)
    texts = several()
    for text, adapter in zip(texts, (1, -1, 0), strict=True):
        text.adapter = adapter
    assert np.abs(expected(model, texts[0]) - expected(model, Text(texts[0].ids))).max() > 0.1
    assert_defined(run(PaddleExecutor(model), model, texts, in_pieces(texts)), texts, model)


def test_virtual_tokens_are_seen_by_every_token():
    model = build(FORMS["rope and shared heads"], prefix=19)
    texts = several()
    assert_defined(run(PaddleExecutor(model), model, texts, in_pieces(texts)), texts, model)


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4"])
def test_packed_weights_count_as_what_they_stand_for(kind):
    model = build(FORMS["rope and shared heads"], kind)
    texts = several(1)
    assert_defined(run(PaddleExecutor(model), model, texts, [[(0, 0, 21)]]), texts, model)


def test_token_vectors_may_be_bfloat16():
    model = build(FORMS["rope and shared heads"])
    half = (model.embed.view(np.uint32) >> 16).astype(np.uint16)
    wide = (half.astype(np.uint32) << 16).view(np.float32)
    stored, meant = (type(model)(**{**vars(model), "embed": table}) for table in (half, wide))
    texts = several(1)
    assert_defined(run(PaddleExecutor(stored), stored, texts, [[(0, 0, 21)]]), texts, meant)


def test_token_vectors_may_be_outputs_of_a_packed_weight():
    model = build(FORMS["rope and shared heads"])
    tied = type(model)(**{**vars(model), "embed": pack(model.embed.T, "int8")})
    meant = type(model)(**{**vars(model), "embed": np.ascontiguousarray(unpack(tied.embed).T)})
    texts = several(1)
    assert_defined(run(PaddleExecutor(tied), tied, texts, [[(0, 0, 21)]]), texts, meant)


@pytest.mark.parametrize(("kv", "share"), [("float16", 5e-4), ("int8", 0.03)])
def test_keys_and_values_in_fewer_bits_change_little(kv, share):
    model = build(FORMS["rope and shared heads"])
    texts = several()
    found = run(PaddleExecutor(model, kv=kv), model, texts, in_pieces(texts))
    for logits, text in zip(found, texts, strict=True):
        wanted = expected(model, text)
        assert 0 < np.abs(logits - wanted).max() < share * np.abs(wanted).max()


@pytest.mark.parametrize(("kv", "bytes_of_head"), [("float32", 4 * WIDTH), ("float16", 2 * WIDTH), ("int8", WIDTH + 4)])
def test_a_copied_block_stands_for_its_source(kv, bytes_of_head):
    model = build(FORMS["rope and shared heads"])
    executor, (text,) = PaddleExecutor(model, kv=kv), several(1)
    assert executor.block_bytes == 2 * LAYERS * BLOCK * KV_HEADS * bytes_of_head
    executor.allocate(4)
    first, second = np.array([[0, 1]]), np.array([[3, 2]])
    whole = executor.run(batch(model, [(text, 0, 21)], first))[20:].copy()
    executor.run(batch(model, [(text, 0, 20)], first))
    executor.copy(0, 3)
    executor.copy(1, 2)
    np.testing.assert_allclose(executor.run(batch(model, [(text, 20, 21)], second)), whole, atol=2e-5)


def test_only_the_wanted_logits_are_given():
    model = build(FORMS["rope and shared heads"])
    executor, (text,) = PaddleExecutor(model), several(1)
    executor.allocate(2)
    step = batch(model, [(text, 0, 21)], np.array([[0, 1]]))
    every = executor.run(step).copy()
    some = type(step)(
        **{name: getattr(step, name) for name in step.__slots__} | {"logits_indices_L": np.array([3, 20])}
    )
    none = type(step)(
        **{name: getattr(step, name) for name in step.__slots__} | {"logits_indices_L": np.array([], np.int32)}
    )
    np.testing.assert_allclose(executor.run(some), every[[3, 20]], atol=1e-6)
    assert executor.run(none).shape == (0, 37)


def test_half_types_are_refused_where_there_are_no_kernels():
    with pytest.raises(ConfigError, match="on cpu there are no kernels for half types; compute in float32"):
        PaddleExecutor(build(FORMS["rope and shared heads"]), "bfloat16", device="cpu")


def test_keys_in_8_bits_are_written_by_the_kernel_where_there_is_one(monkeypatch):
    model, texts = build(FORMS["rope and shared heads"]), several()
    plain = run(PaddleExecutor(model, kv="int8"), model, texts, in_pieces(texts))
    calls = []

    def quantize_kv(x, slot, codes, units):
        calls.append(x.shape)
        wide = x.numpy()
        unit = np.abs(wide).max(-1) / np.float32(127)
        paddle.index_put_(codes, (slot,), paddle.to_tensor(np.rint(wide / unit[..., None]).astype(np.int8)))
        paddle.index_put_(units, (slot,), paddle.to_tensor(unit))

    monkeypatch.setattr(cuda, "serves", lambda tensor: True)
    monkeypatch.setattr(cuda, "quantize_kv", quantize_kv)
    for logits, wanted in zip(
        run(PaddleExecutor(model, kv="int8"), model, texts, in_pieces(texts)), plain, strict=True
    ):
        np.testing.assert_allclose(logits, wanted, atol=1e-5)
    assert len(calls) == 2 * LAYERS * len(in_pieces(texts))


def test_a_type_that_keys_cannot_be_held_in_is_refused():
    with pytest.raises(ConfigError, match="kv='int4' must be float32, float16 or int8"):
        PaddleExecutor(build(FORMS["rope and shared heads"]), kv="int4")


@pytest.mark.parametrize("kind", ["float32", "int8"])
@pytest.mark.parametrize("name", FORMS)
def test_native_steps_give_the_same(name, kind):
    """Of weights in codes the native step rounds its rows to 8 bits, too."""
    if not available():
        pytest.skip("no compiled kernels here")
    model = build(FORMS[name], kind, adapters=2)
    texts = several()
    for text, adapter in zip(texts, (1, -1, 0), strict=True):
        text.adapter = adapter
    if name == "two positions and contexts":
        texts[0].context, texts[2].context = 5, 13
    ours, theirs = (run(made(model), model, texts, in_pieces(texts)) for made in (PaddleExecutor, NativeExecutor))
    for logits, others in zip(ours, theirs, strict=True):
        scale = np.abs(logits).max()
        np.testing.assert_allclose(others, logits, atol=(3e-5 if kind == "float32" else 0.05) * scale)


@pytest.mark.parametrize("kv", ["float16", "float32", "int8"])
def test_an_engine_without_compiled_kernels_answers_by_paddles_operations(monkeypatch, kv):
    model = build(FORMS["rope and shared heads"])
    answers = {}
    for there in (True, False):
        monkeypatch.setattr(native, "available", lambda there=there: there and available())
        executor = loader.executor_of(model, kv)
        assert isinstance(executor, NativeExecutor if there and available() else PaddleExecutor)
        engine = Engine(executor, model.graph, blocks=16, step_tokens=9, most_rows=2)
        options = SamplingParams(max_new_tokens=6)
        requests = [Request(prompt=text.ids, options=options) for text in several()]
        answers[there] = [answer.ids for answer in engine.generate(requests)]
    assert answers[True] == answers[False] and [len(ids) for ids in answers[True]] == [6, 6, 6]


def test_an_engine_computes_on_the_gpu_where_there_is_one(monkeypatch):
    made = []
    monkeypatch.setattr(runtime, "device", lambda: "gpu")
    monkeypatch.setattr("llmctl.infer.executors.paddle.PaddleExecutor", lambda *arguments: made.append(arguments[1:]))
    for kv in ("float16", "float32", "int8"):
        loader.executor_of(build(FORMS["rope and shared heads"]), kv)
    assert made == [("bfloat16", None), ("bfloat16", None), ("bfloat16", "int8")]


def _as(real):
    """Marks a stand-in that is called as the real function may be called."""

    def mark(stand_in):
        def call(*args, **kwargs):
            bound = inspect.signature(real).bind(*args, **kwargs)
            bound.apply_defaults()
            return stand_in(**bound.arguments)

        return call

    return mark


@pytest.fixture
def fused(monkeypatch):
    """The forms for GPUs, with stand-ins for paddle's kernels that do in plain operations what their pages say."""
    functions, quant = paddle.incubate.nn.functional, paddle.nn.quant

    @_as(functions.fused_rms_norm)
    def rms_norm(x, norm_weight, norm_bias, epsilon, begin_norm_axis, **rest):
        assert begin_norm_axis == 1 and x.ndim == 2 and norm_bias is None
        return x / ((x * x).mean(axis=1, keepdim=True) + epsilon).sqrt() * norm_weight, None, None

    @_as(functions.fused_layer_norm)
    def layer_norm(x, norm_weight, norm_bias, epsilon, begin_norm_axis, **rest):
        assert begin_norm_axis == 1 and norm_weight.dtype == norm_bias.dtype == paddle.float32
        return paddle.nn.functional.layer_norm(x, x.shape[1:], norm_weight, norm_bias, epsilon), None, None, None

    @_as(functions.fused_rotary_position_embedding)
    def rotary(q, k, v, sin, cos, use_neox_rotary_style, **rest):
        assert not use_neox_rotary_style and sin.shape == [1, q.shape[1], 1, q.shape[3]] == cos.shape
        low, high = paddle.split(q, 2, axis=-1)
        return q * cos + paddle.concat([-high, low], axis=-1) * sin, None, None

    @_as(paddle.nn.functional.flashmask_attention)
    def flashmask(query, key, value, startend_row_indices, causal, **rest):
        assert not causal and startend_row_indices.shape == [1, 1, key.shape[1], 2]
        below, above = startend_row_indices.numpy()[0, 0].T
        row = np.arange(query.shape[1])[:, None]
        hidden = (row >= below) | (row < above)
        groups = query.shape[2] // key.shape[2]
        q, k, v = (x.numpy()[0].astype(np.float64) for x in (query, key, value))
        k, v = (np.repeat(x, groups, axis=1) for x in (k, v))
        scores = np.einsum("tnh,snh->nts", q, k) / np.sqrt(q.shape[-1])
        scores = np.where(hidden, -np.inf, scores)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("nts,snh->tnh", weights / weights.sum(-1, keepdims=True), v)
        return paddle.to_tensor(mixed[None].astype(np.float32))

    @_as(quant.weight_quantize)
    def quantize(x, algo, arch, group_size):
        assert algo == "weight_only_int8"
        groups = x.reshape([-1, x.shape[0] if group_size == -1 else group_size, x.shape[1]])
        scale = groups.abs().max(axis=1) / 127
        codes = paddle.round(groups / scale.unsqueeze(1)).astype("int8")
        return codes.reshape(x.shape).t(), scale.squeeze(0) if group_size == -1 else scale

    @_as(quant.weight_only_linear)
    def product(x, weight, bias, weight_scale, weight_dtype, arch, group_size):
        assert weight_dtype == "int8" and weight.shape[1] == x.shape[1]
        groups = 1 if weight_scale.ndim == 1 else weight_scale.shape[0]
        wide = weight.t().astype("float32").reshape([groups, -1, weight.shape[0]])
        wide = (wide * weight_scale.reshape([groups, 1, -1])).reshape([x.shape[1], -1])
        y = paddle.matmul(x, wide)
        return y if bias is None else y + bias

    monkeypatch.setattr(functions, "fused_rms_norm", rms_norm)
    monkeypatch.setattr(functions, "fused_layer_norm", layer_norm)
    monkeypatch.setattr(functions, "fused_rotary_position_embedding", rotary)
    monkeypatch.setattr(paddle.nn.functional, "flashmask_attention", flashmask)
    monkeypatch.setattr(quant, "weight_quantize", quantize)
    monkeypatch.setattr(quant, "weight_only_linear", product)
    monkeypatch.setattr(paddle_ops, "HALF", ("float32",))
    return paddle_ops.operations("gpu:0", "float32")


@pytest.mark.parametrize("name", FORMS)
def test_the_forms_for_gpus_ask_paddles_kernels_for_the_same(name, fused, monkeypatch):
    monkeypatch.setattr("llmctl.infer.executors.paddle.operations", lambda device, dtype: fused)
    model = build(FORMS[name])
    texts = several()
    if name == "two positions and contexts":
        texts[0].context, texts[2].context = 5, 13
    assert_defined(run(PaddleExecutor(model), model, texts, in_pieces(texts)), texts, model)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("group", [0, 64])
def test_codes_become_paddles_codes_on_gpus(kind, group, fused):
    random = np.random.default_rng(3)
    weight = random.standard_normal([128, 64]).astype(np.float32)
    packed = pack(weight, kind, group, asymmetric=kind == "int4")
    bias, x = random.standard_normal(64).astype(np.float32), random.standard_normal([3, 128]).astype(np.float32)
    made = fused.linear(Linear(packed, bias), "float32")
    assert isinstance(made, paddle_ops.Int8Linear)
    wanted = x @ unpack(packed) + bias
    # Codes of 8 bits come out as they went in; those of 4 are rounded once more, to an eighth of a code or less.
    tolerance = 1e-4 if kind == "int8" else 0.01 * np.abs(wanted).max()
    np.testing.assert_allclose(made(paddle.to_tensor(x)).numpy(), wanted, atol=tolerance)


def test_widths_that_paddles_kernel_does_not_take_are_unpacked(fused):
    packed = pack(np.ones([96, 40], np.float32), "int8", 32)
    assert isinstance(fused.linear(Linear(packed), "float32"), paddle_ops.DenseLinear)


def test_what_is_seen_is_one_interval_of_tokens_for_each_key():
    model = build(FORMS["windows"])
    texts = several()
    step = batch(model, [(texts[0], 3, 19), (texts[1], 8, 9), (texts[2], 0, 13)], blocks_for(3, 12))
    below, above = AttentionMetadata(step).flashmask_bounds().numpy()[0, 0].T
    seen = [
        [
            above[s] <= t < below[s]
            for one in AttentionMetadata(step).sequences
            for s in range(one.keys.start, one.keys.stop)
        ]
        for t in range(len(step.ids_T))
    ]
    place = np.concatenate([one.kv_position_S for one in AttentionMetadata(step).sequences])
    row = np.concatenate([[n] * len(one.kv_position_S) for n, one in enumerate(AttentionMetadata(step).sequences)])
    for t in range(len(step.ids_T)):
        wanted = (row == step.sequence_T[t]) & (step.attend_begin_T[t] <= place) & (place < step.attend_end_T[t])
        np.testing.assert_array_equal(seen[t], wanted)


@pytest.mark.parametrize("device", ["cpu", "gpu:0"])
def test_fused_forms_are_for_gpus_and_half_types(device):
    for dtype in ("float32", "float16", "bfloat16"):
        chosen = paddle_ops.operations(device, dtype)
        fused = device != "cpu" and dtype != "float32"
        assert chosen.rmsnorm is (paddle_ops.fused_rms_norm if fused else paddle_ops.rms_norm)
