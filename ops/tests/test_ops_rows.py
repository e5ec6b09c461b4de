"""Norm, rotary positions, gate and loss against their formulas in numpy float64, gradients included."""

import numpy as np
import paddle
import pytest

import llmctl_ops
from llmctl_ops import reference

WIDTHS = [1, 7, 8, 64, 130, 1376]


def check(function, exact, tensors, rest=(), tolerance=1e-5):
    """Compares result and gradients; ``exact`` takes arrays and the upstream gradient and returns both."""
    out = function(*tensors, *rest)
    grad = np.random.default_rng(2).standard_normal(out.shape).astype("float32")
    out.backward(paddle.to_tensor(grad))
    arrays = [np.asarray(tensor.numpy(), np.float64) for tensor in tensors]
    expected = exact(*arrays, grad=grad.astype(np.float64))
    for ours, right in zip([out, *(tensor.grad for tensor in tensors)], expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), right, rtol=tolerance, atol=tolerance * max(1.0, np.abs(right).max()))
    with paddle.no_grad():
        np.testing.assert_array_equal(function(*tensors, *rest).numpy(), out.numpy())
    return out


def exact_norm(x, weight, grad):
    scale = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3)
    unit, given = x * scale, grad * weight
    grad_x = scale * (given - unit * (given * unit).mean(-1, keepdims=True))
    return unit * weight, grad_x, (grad * unit).reshape(-1, x.shape[-1]).sum(0)


@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(level, seeded, width):
    check(llmctl_ops.rms_norm, exact_norm, [seeded(3, 11, width), seeded(width)], [1e-3])


def test_rms_norm_of_many_rows_sums_the_gradient_of_the_weight_over_all_threads(level, seeded):
    check(llmctl_ops.rms_norm, exact_norm, [seeded(3000, 24), seeded(24)], [1e-3], tolerance=3e-5)


def exact_layer_norm(x, weight, bias, grad):
    apart = x - x.mean(-1, keepdims=True)
    scale = 1 / np.sqrt((apart**2).mean(-1, keepdims=True) + 1e-3)
    unit, given = apart * scale, grad * weight
    grad_x = scale * (given - given.mean(-1, keepdims=True) - unit * (given * unit).mean(-1, keepdims=True))
    return unit * weight + bias, grad_x, *((part.reshape(-1, x.shape[-1])).sum(0) for part in (grad * unit, grad))


@pytest.mark.parametrize("width", WIDTHS)
def test_layer_norm(level, seeded, width):
    check(llmctl_ops.layer_norm, exact_layer_norm, [seeded(3, 11, width), seeded(width), seeded(width)], [1e-3])


def test_layer_norm_far_from_zero_keeps_its_precision(level, seeded):
    x = paddle.to_tensor(seeded(4, 100).numpy() + 1000.0, stop_gradient=False)
    check(llmctl_ops.layer_norm, exact_layer_norm, [x, seeded(100), seeded(100)], [1e-3], tolerance=1e-4)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [1, 900])
def test_add_bias(level, seeded, rows, width):
    def exact(x, bias, grad):
        return x + bias, grad, grad.sum(0)

    check(llmctl_ops.add_bias, exact, [seeded(rows, width), seeded(width)])


@pytest.mark.parametrize("width", WIDTHS)
def test_gelu_tanh(level, seeded, width):
    def exact(x, grad):
        root = np.sqrt(2 / np.pi)
        tanh = np.tanh(root * (x + 0.044715 * x**3))
        slope = (1 + tanh) / 2 + x / 2 * (1 - tanh**2) * root * (1 + 3 * 0.044715 * x**2)
        return x / 2 * (1 + tanh), grad * slope

    check(llmctl_ops.gelu_tanh, exact, [seeded(5, 3, width)])
    far = paddle.to_tensor([-1e4, -50.0, -6.0, 6.0, 50.0, 1e4], stop_gradient=False)
    check(llmctl_ops.gelu_tanh, exact, [far])


def test_only_the_needed_gradients_are_computed(level, seeded):
    x, bias = seeded(3, 8), seeded(8)
    bias.stop_gradient = True
    llmctl_ops.add_bias(x, bias).sum().backward()
    assert bias.grad is None and float(x.grad.sum()) == 24.0


def angles(rows, new, width):
    angle = np.random.default_rng(4).uniform(-9, 9, (rows, new, 1, width)).astype("float32")
    return np.cos(angle), np.sin(angle)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("width", [2, 6, 16, 36, 128])
def test_rope(level, seeded, rows, width):
    cos, sin = angles(rows, 5, width)
    half = width // 2

    def exact(x, grad):
        low, high = x[..., :half], x[..., half:]
        out = x * cos + np.concatenate([-high, low], -1) * sin
        rotated = grad * sin
        return out, grad * cos + np.concatenate([rotated[..., half:], -rotated[..., :half]], -1)

    check(llmctl_ops.rope, exact, [seeded(3, 5, 4, width)], [paddle.to_tensor(cos), paddle.to_tensor(sin)])


def exact_gate(gate, up, grad):
    sigmoid = 1 / (1 + np.exp(-gate))
    silu = gate * sigmoid
    return silu * up, grad * up * (sigmoid + silu * (1 - sigmoid)), grad * silu


@pytest.mark.parametrize("width", WIDTHS)
def test_swiglu(level, seeded, width):
    check(llmctl_ops.swiglu, exact_gate, [seeded(5, 3, width), seeded(5, 3, width)])


@pytest.mark.parametrize("width", WIDTHS)
def test_swiglu_of_one_tensor_takes_its_halves(level, seeded, width):
    def exact(both, grad):
        out, *grads = exact_gate(both[..., :width], both[..., width:], grad)
        return out, np.concatenate(grads, -1)

    check(llmctl_ops.swiglu, exact, [seeded(5, 3, 2 * width)])


def test_swiglu_of_large_values_stays_finite_and_right(level):
    gate = paddle.to_tensor([[-300.0, -100.0, -20.0, -1e-30, 0.0, 20.0, 100.0, 300.0]], stop_gradient=False)
    up = paddle.to_tensor([[2.0] * 8], stop_gradient=False)
    with np.errstate(over="ignore"):
        check(llmctl_ops.swiglu, exact_gate, [gate, up])


def exact_loss(labels):
    def exact(logits, grad):
        rows = np.arange(len(labels))
        shifted = logits - logits.max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        one = np.zeros_like(logits)
        one[rows, labels] = 1
        return -log_p[rows, labels].sum(), grad * (np.exp(log_p) - one)

    return exact


@pytest.mark.parametrize("width", [1, 5, 16, 77, 3001])
def test_cross_entropy(level, seeded, width):
    labels = np.random.default_rng(0).integers(0, width, 13)
    check(llmctl_ops.cross_entropy, exact_loss(labels), [seeded(13, width)], [paddle.to_tensor(labels)])


def test_cross_entropy_may_write_the_gradient_in_the_place_of_the_logits(level, seeded):
    weight, labels = seeded(6, 33), paddle.to_tensor([1, 32, 0, 7])
    x, grads, places = seeded(4, 6), [], []
    for overwrite in (False, True):
        logits = paddle.matmul(x, weight)
        before = logits.numpy()
        loss = llmctl_ops.cross_entropy(logits, labels, overwrite=overwrite)
        (loss / 3).backward()
        grads.append((x.grad.numpy(), weight.grad.numpy()))
        places.append(np.array_equal(logits.numpy(), before))
        x.clear_gradient(False)
        weight.clear_gradient(False)
    assert places == [True, False]
    for plain, in_place in zip(*grads, strict=True):
        np.testing.assert_array_equal(plain, in_place)


def test_cross_entropy_of_a_token_may_be_any_size(level):
    logits = paddle.to_tensor([[0.0, 500.0], [1e4, -1e4]], stop_gradient=False)
    out = check(llmctl_ops.cross_entropy, exact_loss(np.array([0, 1])), [logits], [paddle.to_tensor([0, 1])])
    assert float(out) == pytest.approx(20500.0)


@pytest.mark.parametrize("label", [-100, -1, 5])
def test_a_label_outside_of_the_vocabulary_is_refused(level, seeded, label):
    with pytest.raises(ValueError, match="label"):
        llmctl_ops.cross_entropy(seeded(2, 5), paddle.to_tensor([0, label]))


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "add_bias", "gelu_tanh", "swiglu", "cross_entropy"])
def test_what_is_no_number_is_not_hidden(level, seeded, name):
    x = seeded(4, 20).detach()
    x[2, 19] = float("nan")
    rest = {
        "rms_norm": (paddle.ones([20]), 1e-6),
        "layer_norm": (paddle.ones([20]), paddle.ones([20]), 1e-6),
        "add_bias": (paddle.ones([20]),),
        "gelu_tanh": (),
        "swiglu": (paddle.ones([4, 20]),),
        "cross_entropy": (paddle.zeros([4], "int64"),),
    }
    assert paddle.isnan(getattr(llmctl_ops, name)(x, *rest[name])).any()


def test_no_rows(level, seeded):
    assert llmctl_ops.rms_norm(seeded(0, 8), seeded(8), 1e-6).shape == [0, 8]
    assert llmctl_ops.swiglu(seeded(2, 0, 8)).shape == [2, 0, 4]
    weight, none = seeded(8), seeded(0, 8)
    llmctl_ops.rms_norm(none, weight, 1e-6).sum().backward()
    assert float(weight.grad.abs().sum()) == 0.0
    cos = paddle.ones([1, 0, 1, 8])
    assert llmctl_ops.rope(seeded(2, 0, 3, 8), cos, cos).shape == [2, 0, 3, 8]
    assert float(llmctl_ops.cross_entropy(none, paddle.zeros([0], "int64"))) == 0.0


CASES = {
    "layer_norm": lambda draw: [draw(3, 10), draw(10), draw(10), 1e-6],
    "add_bias": lambda draw: [draw(3, 10), draw(10)],
    "gelu_tanh": lambda draw: [draw(3, 10)],
    "rms_norm": lambda draw: [draw(3, 10), draw(10), 1e-6],
    "rope": lambda draw: [draw(2, 5, 3, 6), draw(1, 5, 1, 6).detach(), draw(1, 5, 1, 6).detach()],
    "swiglu": lambda draw: [draw(3, 10), draw(3, 10)],
    "cross_entropy": lambda draw: [draw(3, 10), paddle.to_tensor([1, 9, 0])],
}


@pytest.mark.parametrize("name", CASES)
def test_float64_takes_the_reference_and_agrees(level, seeded, name):
    given = CASES[name](seeded)
    wide = [x.astype("float64") if isinstance(x, paddle.Tensor) and x.is_floating_point() else x for x in given]
    function = getattr(llmctl_ops, name)
    assert function(*wide).dtype == paddle.float64
    np.testing.assert_allclose(function(*given).numpy(), getattr(reference, name)(*wide).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_traced_program_takes_the_reference(level, seeded, name):
    given = CASES[name](seeded)
    rest = given[1:]
    function = getattr(llmctl_ops, name)

    def call(x):
        return function(x, *rest)

    with paddle.no_grad():
        traced = paddle.jit.to_static(call, full_graph=True)(given[0])
        np.testing.assert_allclose(traced.numpy(), function(*given).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("rms_norm", [(2, 8), (7,)]),
        ("layer_norm", [(2, 8), (8,), (7,)]),
        ("add_bias", [(2, 8), (2,)]),
        ("rope", [(1, 2, 1, 8), (1, 3, 1, 8), (1, 3, 1, 8)]),
        ("rope", [(1, 2, 1, 7), (1, 2, 1, 7), (1, 2, 1, 7)]),
        ("rope", [(1, 2, 1, 8), (1, 2, 1, 8), (1, 2, 1, 6)]),
        ("swiglu", [(2, 8), (2, 7)]),
        ("swiglu", [(2, 7)]),
        ("cross_entropy", [(2, 8), (2,)]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name, shapes):
    rest = [1e-6] if name.endswith("norm") else []
    with pytest.raises(ValueError, match=name):
        getattr(llmctl_ops, name)(*(paddle.zeros(shape) for shape in shapes), *rest)
