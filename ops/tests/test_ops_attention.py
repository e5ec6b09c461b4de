"""Attention against its definition in numpy float64, with the whole matrix of scores."""

import ctypes
from pathlib import Path

import numpy as np
import paddle
import pytest

import llmctl_ops
from llmctl_ops import library, reference

SHAPES = [  # B, T, S, N, K, H, past
    (2, 70, 70, 4, 2, 64, 0),
    (1, 1, 130, 6, 3, 20, 129),
    (1, 65, 100, 2, 2, 40, 35),
    (2, 129, 129, 3, 1, 7, 0),
    (1, 64, 64, 1, 1, 128, 0),
]


def exact(q, k, v, first, last, past, scale, slopes=None, places=None, grad=None):
    """Result and gradients of q, k and v; the arithmetic written out in float64."""
    q, k, v, grad = (np.asarray(x, np.float64) for x in (q, k, v, grad))
    group = q.shape[2] // k.shape[2]
    keys, values = np.repeat(k, group, 2), np.repeat(v, group, 2)
    scores = np.einsum("btnh,bsnh->bnts", q, keys) * scale
    if slopes is not None:
        scores = scores + slopes[None, :, None, None] * places[:, None, None, :].astype(np.float64)
    query = past + np.arange(q.shape[1])[:, None]
    seen = ((first[:, None] <= query) & (query < last[:, None]))[:, None] & np.ones(scores.shape, bool)
    scores = np.where(seen, scores, -np.inf)
    powers = np.exp(scores - scores.max(-1, initial=-1e300, keepdims=True))
    total = powers.sum(-1, keepdims=True)
    weights = powers / np.where(total == 0, 1, total)
    out = np.einsum("bnts,bsnh->btnh", weights, values)
    grad_weights = np.einsum("btnh,bsnh->bnts", grad, values)
    grad_scores = weights * (grad_weights - (grad_weights * weights).sum(-1, keepdims=True)) * scale
    grad_k, grad_v = np.einsum("bnts,btnh->bsnh", grad_scores, q), np.einsum("bnts,btnh->bsnh", weights, grad)
    over_group = (*k.shape[:3], group, k.shape[3])
    fold = [x.reshape(over_group[0], over_group[1], k.shape[2], group, k.shape[3]).sum(3) for x in (grad_k, grad_v)]
    return out, np.einsum("bnts,bsnh->btnh", grad_scores, keys), *fold


def masks(batch, keys, past):
    """Name -> intervals: each kind of mask that one representation carries."""
    rng = np.random.default_rng(3)
    place = np.arange(keys, dtype=np.int32)[None]
    end = np.full_like(place, keys)
    anywhere = rng.integers(0, keys, (batch, keys)).astype(np.int32)
    some = (anywhere + rng.integers(-5, keys // 2 + 2, (batch, keys))).astype(np.int32)
    return {
        "causal": (place, end),
        "window": (place, place + 5),
        "documents": (place, (place // 23 + 1) * 23),
        "prefix": (np.maximum(place - 30, 0), end),
        "padding": (np.where(place < 9, end, place).astype(np.int32), end),
        "anything": (anywhere, some),
    }


@pytest.fixture
def openmp():
    """Paddle's OpenMP runtime, whose number of threads is as before afterwards."""
    file = Path(paddle.__file__).parent / "libs" / "libiomp5.so"
    if not file.exists():
        pytest.skip("paddle comes without this OpenMP runtime")
    runtime = ctypes.CDLL(str(file))
    before = runtime.omp_get_max_threads()
    yield runtime
    runtime.omp_set_num_threads(before)


def ours(function, tensors, grad, *rest):
    """Result and gradients as arrays."""
    out = function(*tensors, *rest)
    out.backward(paddle.to_tensor(grad))
    arrays = [out.numpy(), *(tensor.grad.numpy() for tensor in tensors)]
    for tensor in tensors:
        tensor.clear_gradient(False)
    return arrays


@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_the_definition_under_every_mask(level, seeded, shape, alibi):
    batch, new, keys, heads, groups, width, past = shape
    tensors = [seeded(batch, new, heads, width), seeded(batch, keys, groups, width), seeded(batch, keys, groups, width)]
    arrays, scale = [tensor.numpy() for tensor in tensors], 0.3
    grad = seeded(*tensors[0].shape).numpy()
    bias = ()
    if alibi:
        bias = (np.linspace(0.05, 0.5, heads, dtype="float32"), np.arange(keys, dtype="float32")[None] % 17)
    for name, (first, last) in masks(batch, keys, past).items():
        given = [paddle.to_tensor(x) for x in (first, last)]
        result = ours(llmctl_ops.attention, tensors, grad, *given, past, scale, *map(paddle.to_tensor, bias))
        for part, expected in zip(result, exact(*arrays, first, last, past, scale, *bias, grad=grad), strict=True):
            np.testing.assert_allclose(part, expected, rtol=2e-5, atol=2e-5, err_msg=name)


def test_the_reference_is_the_definition_too(seeded):
    tensors = [seeded(2, 9, 4, 6), seeded(2, 12, 2, 6), seeded(2, 12, 2, 6)]
    arrays, grad = [tensor.numpy() for tensor in tensors], seeded(2, 9, 4, 6).numpy()
    bias = (np.linspace(0.05, 0.5, 4, dtype="float32"), np.arange(12, dtype="float32")[None])
    for first, last in masks(2, 12, 3).values():
        rest = [paddle.to_tensor(x) for x in (first, last)], 3, 0.4, *map(paddle.to_tensor, bias)
        result = ours(reference.attention, tensors, grad, *rest[0], *rest[1:])
        for part, expected in zip(result, exact(*arrays, first, last, 3, 0.4, *bias, grad=grad), strict=True):
            np.testing.assert_allclose(part, expected, rtol=2e-5, atol=2e-5)


def test_a_query_that_sees_nothing_gives_zeros_and_takes_no_gradient(level, seeded):
    q, k, v = seeded(1, 5, 2, 16), seeded(1, 5, 2, 16), seeded(1, 5, 2, 16)
    first = paddle.to_tensor([[0, 1, 9, 3, 4]], dtype="int32")
    last = paddle.to_tensor([[2, 2, 0, 5, 5]], dtype="int32")
    out = llmctl_ops.attention(q, k, v, first, last)
    out.sum().backward()
    assert float(out[:, 2].abs().max()) == 0.0 == float(q.grad[:, 2].abs().max())
    assert float(k.grad[:, 2].abs().max()) == 0.0 == float(v.grad[:, 2].abs().max())
    assert float(out[:, 3].abs().min()) > 0.0


def test_packed_documents_attend_as_if_each_were_alone(level, seeded):
    q, k, v = seeded(1, 90, 2, 32), seeded(1, 90, 2, 32), seeded(1, 90, 2, 32)
    place = paddle.arange(90, dtype="int32").unsqueeze(0)
    cut = 37
    last = paddle.where(place < cut, paddle.full_like(place, cut), paddle.full_like(place, 90))
    together = llmctl_ops.attention(q, k, v, place, last)
    for part in (slice(0, cut), slice(cut, 90)):
        size = part.stop - part.start
        own = place[:, :size], paddle.full([1, size], size, "int32")
        alone = llmctl_ops.attention(q[:, part], k[:, part], v[:, part], *own)
        np.testing.assert_allclose(together[:, part].numpy(), alone.numpy(), atol=1e-6)


def test_what_is_no_number_is_not_hidden(level, seeded):
    q, k, v = seeded(1, 70, 1, 16), seeded(1, 70, 1, 16), seeded(1, 70, 1, 16)
    place = paddle.arange(70, dtype="int32").unsqueeze(0)
    end = paddle.full_like(place, 70)
    with paddle.no_grad():
        q[:, 40] = float("nan")
        out = llmctl_ops.attention(q, k, v, place, end)
    assert paddle.isnan(out[:, 40]).all()
    assert not paddle.isnan(paddle.concat([out[:, :40], out[:, 41:]], axis=1)).any()


@pytest.mark.parametrize("sizes", [(0, 4), (3, 0), (0, 0)])
def test_no_queries_or_no_keys(level, seeded, sizes):
    new, keys = sizes
    q, k, v = seeded(2, new, 4, 16), seeded(2, keys, 2, 16), seeded(2, keys, 2, 16)
    none = paddle.zeros([1, keys], "int32")
    out = llmctl_ops.attention(q, k, v, none, none + 9)
    out.sum().backward()
    assert out.shape == q.shape and float(out.abs().sum()) == 0.0 == float(k.grad.abs().sum())


@pytest.mark.parametrize("threads", [1, 3, 5])
def test_any_number_of_threads_gives_the_same(level, seeded, openmp, threads):
    tensors = [seeded(1, 300, 2, 16), seeded(1, 300, 1, 16), seeded(1, 300, 1, 16)]
    place = paddle.arange(300, dtype="int32").unsqueeze(0)
    rest = place, paddle.full_like(place, 300)
    grad = seeded(1, 300, 2, 16).numpy()
    expected = exact(*(tensor.numpy() for tensor in tensors), *(x.numpy() for x in rest), 0, 0.25, grad=grad)
    openmp.omp_set_num_threads(threads)
    result = ours(llmctl_ops.attention, tensors, grad, *rest)
    for part, right in zip(result, expected, strict=True):
        np.testing.assert_allclose(part, right, rtol=2e-5, atol=2e-5)


def test_without_gradients_and_in_float64_the_result_is_the_same(level, seeded):
    q, k, v = seeded(2, 33, 4, 24), seeded(2, 33, 4, 24), seeded(2, 33, 4, 24)
    place = paddle.arange(33, dtype="int32").unsqueeze(0)
    end = paddle.full_like(place, 33)
    tracked = llmctl_ops.attention(q, k, v, place, end)
    with paddle.no_grad():
        bare = llmctl_ops.attention(q, k, v, place, end)
        wide = llmctl_ops.attention(*(x.astype("float64") for x in (q, k, v)), place, end)
    assert wide.dtype == paddle.float64 and not tracked.stop_gradient and bare.stop_gradient
    np.testing.assert_array_equal(tracked.numpy(), bare.numpy())
    np.testing.assert_allclose(bare.numpy(), wide.numpy(), atol=2e-6)


def test_inputs_without_gradients_get_none(level, seeded):
    q, k, v = seeded(1, 8, 2, 16), seeded(1, 8, 2, 16), seeded(1, 8, 2, 16)
    k.stop_gradient = True
    place = paddle.arange(8, dtype="int32").unsqueeze(0)
    llmctl_ops.attention(q, k, v, place, paddle.full_like(place, 8)).sum().backward()
    assert k.grad is None and v.grad is not None


def test_a_traced_program_takes_the_reference(level, seeded):
    q = seeded(1, 8, 2, 16)
    place = paddle.arange(8, dtype="int32").unsqueeze(0)
    end = paddle.full_like(place, 8)

    def attend(x):
        return llmctl_ops.attention(x, x, x, place, end)

    traced = paddle.jit.to_static(attend, full_graph=True)
    with paddle.no_grad():
        np.testing.assert_allclose(traced(q).numpy(), attend(q).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"k": (1, 7, 2, 8)}, "v"),
        ({"k": (1, 8, 3, 8), "v": (1, 8, 3, 8)}, "divisor"),
        ({"first": (1, 7)}, "first"),
        ({"last": (2, 8)}, "last"),
        ({"slopes": (4,)}, "both"),
        ({"slopes": (3,), "key_positions": (1, 8)}, "slopes"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, word):
    shapes = {"q": (1, 8, 4, 8), "k": (1, 8, 2, 8), "v": (1, 8, 2, 8), "first": (1, 8), "last": (1, 8), **change}
    types = {"first": "int32", "last": "int32"}
    tensors = {name: paddle.zeros(shape, types.get(name, "float32")) for name, shape in shapes.items()}
    names = {"q": "q_BTNH", "k": "k_BSKH", "v": "v_BSKH"}
    with pytest.raises(ValueError, match=word):
        llmctl_ops.attention(**{names.get(name, name): tensor for name, tensor in tensors.items()})


def test_an_interval_of_another_type_is_refused():
    x, wide = paddle.zeros([1, 4, 1, 8]), paddle.zeros([1, 4], "int64")
    with pytest.raises(ValueError, match="int32"):
        llmctl_ops.attention(x, x, x, wide, wide)


def test_the_kernels_are_the_ones_of_the_level(level):
    kernel = library.load().kernel("attention_forward")
    assert kernel.__name__ == f"llmctl_ops_attention_forward_{level}"


@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 2, 64), (1, 700, 1, 16), (3, 130, 3, 128), (2, 65, 2, 20), (1, 513, 8, 32)])
def test_a_single_query_without_gradients_is_that_of_the_definition(level, seeded, openmp, shape, alibi):
    """Generation takes a path of its own, which cuts long contexts into shares."""
    batch, keys, groups, width = shape
    heads = 3 * groups
    tensors = [seeded(batch, 1, heads, width), seeded(batch, keys, groups, width), seeded(batch, keys, groups, width)]
    arrays, grad = [tensor.numpy() for tensor in tensors], np.zeros((batch, 1, heads, width))
    bias = ()
    if alibi:
        bias = (np.linspace(0.05, 0.5, heads, dtype="float32"), np.arange(keys, dtype="float32")[None] % 17)
    for past in (keys - 1, keys // 2):
        for name, (first, last) in masks(batch, keys, past).items():
            given = *map(paddle.to_tensor, (first, last)), past, 0.3, *map(paddle.to_tensor, bias)
            expected = exact(*arrays, first, last, past, 0.3, *bias, grad=grad)[0]
            for threads in (1, 5):
                openmp.omp_set_num_threads(threads)
                with paddle.no_grad():
                    result = llmctl_ops.attention(*tensors, *given).numpy()
                np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-5, err_msg=f"{name} {threads}")
