"""Every operator takes views as it takes contiguous tensors: each argument, and the gradient that comes back."""

import numpy as np
import paddle
import pytest

import llmctl_ops
from llmctl_ops import library, reference, registry

pytestmark = pytest.mark.skipif(library.load().handle is None, reason="there are no compiled kernels here")


@pytest.fixture(autouse=True)
def _strides():
    """Views share memory, as they do by default; llmctl turns that off for its process."""
    flag = "FLAGS_use_stride_kernel"
    before = paddle.get_flags(flag)[flag]
    paddle.set_flags({flag: True})
    yield
    paddle.set_flags({flag: before})


def strided(array):
    """Every second element of memory; the others are not of the tensor."""
    return paddle.to_tensor(np.stack([array, array + 1], -1))[..., 0]


def offset(array):
    """Contiguous, but not from the beginning of its memory."""
    base = paddle.to_tensor(np.concatenate([np.ones(3, array.dtype), array.ravel()]))
    return base[3:].view(list(array.shape))


def transposed(array):
    """The axes in the opposite order in memory."""
    return paddle.to_tensor(np.ascontiguousarray(array.T)).transpose(list(reversed(range(array.ndim))))


def expanded(array):
    """The last axis repeats one element; its values are therefore others."""
    base = paddle.to_tensor(np.ascontiguousarray(array[..., :1]))
    return paddle.as_strided(base, list(array.shape), [*base.strides[:-1], 0])


def rows_expanded(array):
    """The first axis repeats one row; its values are therefore others."""
    base = paddle.to_tensor(np.ascontiguousarray(array[:1]))
    return paddle.as_strided(base, list(array.shape), [0, *base.strides[1:]])


VIEWS = {view.__name__: view for view in (strided, offset, transposed, expanded, rows_expanded)}


def noise(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("float32")


def attention_case():
    place = np.arange(9, dtype="int32")[None].repeat(2, 0)
    bias = np.float32([0.5, 0.25, 0.125, 0.0625]), place.astype("float32")
    tensors = noise(2, 7, 4, 8), noise(2, 9, 2, 8, seed=1), noise(2, 9, 2, 8, seed=2)
    return [*tensors, place // 2, place + 4, *bias], lambda *given: (*given[:5], 2, 0.3, *given[5:])


def rope_case():
    angle = noise(2, 5, 1, 12, seed=1)
    return [noise(2, 5, 3, 12), np.cos(angle), np.sin(angle)], lambda *given: given


def plain(*shapes, rest=()):
    return [noise(*shape, seed=i) for i, shape in enumerate(shapes)], lambda *given: (*given, *rest)


# Arrays of an operator's tensors, and its arguments made of these tensors.
CASES = {
    "attention": attention_case(),
    "rms_norm": plain((3, 4, 10), (10,), rest=(0.1,)),
    "layer_norm": plain((3, 4, 10), (10,), (10,), rest=(0.1,)),
    "add_bias": plain((3, 4, 10), (10,)),
    "gelu_tanh": plain((3, 4, 10)),
    "rope": rope_case(),
    "swiglu": plain((3, 4, 10), (3, 4, 10)),
    "swiglu of one tensor": plain((3, 4, 10)),
    "cross_entropy": ([noise(6, 11), np.arange(6) * 2 % 11], lambda *given: given),
    "cross_entropy in place": ([noise(6, 11), np.arange(6) * 2 % 11], lambda *given: (*given, True)),
}
WITHOUT_GRADIENT = {"adamw", "sum_squares"}
DIFFERENTIABLE = {"attention": 3, "rope": 1, "cross_entropy": 1, "cross_entropy in place": 1}
"""How many of the first tensors have gradients, where not all of them have."""

ARGUMENTS = [(name, index) for name, (arrays, _) in CASES.items() for index in range(len(arrays))]


def function_of(module, name):
    return getattr(module, name.partition(" ")[0])


def leaves(name, tensors):
    """The tensors as leaves of a graph with their strides."""
    found = [tensor.detach() for tensor in tensors]
    for tensor in found[: DIFFERENTIABLE.get(name, len(found))]:
        tensor.stop_gradient = False
    return found


def run(module, name, tensors, grad):
    """Result and gradients as arrays; ``grad`` makes the upstream gradient from an array."""
    tensors = leaves(name, tensors)
    out = function_of(module, name)(*CASES[name][1](*tensors))
    given = grad(noise(*out.shape, seed=9)) if out.shape else paddle.to_tensor(1.5)
    out.backward(given)
    return [out.numpy(), *(x.grad.numpy() for x in tensors if not x.stop_gradient)]


def assert_as_reference(name, tensors, grad=paddle.to_tensor):
    before = [tensor.numpy() for tensor in tensors]
    copies = [paddle.to_tensor(array) for array in before]
    expected = run(reference, name, copies, lambda array: paddle.to_tensor(grad(array).numpy()))
    for ours, right in zip(run(llmctl_ops, name, tensors, grad), expected, strict=True):
        np.testing.assert_allclose(ours, right, rtol=2e-5, atol=2e-5)
    if "in place" not in name:
        for tensor, array in zip(tensors, before, strict=True):
            np.testing.assert_array_equal(tensor.numpy(), array)
    with paddle.no_grad():
        found = function_of(llmctl_ops, name)(*CASES[name][1](*(paddle.to_tensor(array) for array in before)))
        same = function_of(llmctl_ops, name)(*CASES[name][1](*tensors)) if "in place" not in name else found
    np.testing.assert_array_equal(same.numpy(), found.numpy())


def test_every_operator_of_the_registry_has_a_case():
    assert {name.partition(" ")[0] for name in CASES} | WITHOUT_GRADIENT == {op.name for op in registry.OPS}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("name", "index"), ARGUMENTS)
def test_an_argument_may_be_a_view(name, index, view):
    arrays, _ = CASES[name]
    viewed = VIEWS[view](arrays[index])
    # A vector has one axis to transpose, and of some axes one element is all there is.
    assert view == "offset" or not viewed.is_contiguous() or 1 in viewed.shape or viewed.ndim == 1
    assert_as_reference(name, [viewed if i == index else paddle.to_tensor(a) for i, a in enumerate(arrays)])


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", CASES)
def test_all_arguments_and_the_gradient_may_be_views(name, view):
    assert_as_reference(name, [VIEWS[view](array) for array in CASES[name][0]], VIEWS[view])


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_reaches_what_a_view_was_made_of(name):
    bases = [paddle.to_tensor(np.stack([array, array + 1], -1)) for array in CASES[name][0]]
    grads = []
    for module in (llmctl_ops, reference):
        parents = leaves(name, bases)
        out = function_of(module, name)(*CASES[name][1](*(base[..., 0] for base in parents)))
        (out * out).sum().backward()
        grads.append([base.grad.numpy() for base in parents if not base.stop_gradient])
    for ours, right in zip(*grads, strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-4, atol=1e-4)
        assert not ours[..., 1].any()


@pytest.mark.parametrize("name", CASES)
def test_views_of_no_elements(name):
    arrays, arguments = CASES[name]
    # Every axis as long as the batch is empty; what is shared by all rows is as before.
    tensors = leaves(name, [strided(a)[:0] if len(a) == len(arrays[0]) else strided(a) for a in arrays])
    out = function_of(llmctl_ops, name)(*arguments(*tensors))
    out.sum().backward()
    assert 0 in out.shape or not out.shape
    assert not out.numpy().any()
    assert all(x.grad.shape == x.shape and not x.grad.numpy().any() for x in tensors if not x.stop_gradient)


WRITABLE = [(index, view) for index in range(4) for view in VIEWS if index == 1 or not view.endswith("expanded")]
"""AdamW's arguments, where only the gradient may repeat an element: the others are written to."""


@pytest.mark.parametrize(("index", "view"), WRITABLE)
def test_adamw_updates_what_a_view_shows(index, view):
    arrays = [noise(6, 5, seed=i) for i in range(2)] + [np.abs(noise(6, 5, seed=i)) for i in (2, 3)]
    rest = 1e-2, (0.9, 0.95), (0.9, 0.95), 1e-8, 0.1
    tensors = [VIEWS[view](a) if i == index else paddle.to_tensor(a) for i, a in enumerate(arrays)]
    copies = [paddle.to_tensor(tensor.numpy()) for tensor in tensors]
    llmctl_ops.adamw(*tensors, *rest)
    reference.adamw(*copies, *rest)
    for ours, right in zip(tensors, copies, strict=True):
        np.testing.assert_allclose(ours.numpy(), right.numpy(), rtol=1e-5, atol=1e-6)


def test_adamw_leaves_the_gaps_of_a_view_alone():
    base = paddle.to_tensor(noise(6, 5, 2))
    before = base.numpy()
    moments = paddle.zeros([6, 5]), paddle.zeros([6, 5])
    llmctl_ops.adamw(base[..., 0], paddle.ones([6, 5]), *moments, 1e-2, (0.9, 0.999))
    np.testing.assert_array_equal(base.numpy()[..., 1], before[..., 1])
    assert (base.numpy()[..., 0] != before[..., 0]).all()


@pytest.mark.parametrize("view", VIEWS)
def test_sum_squares_of_a_view(view):
    viewed = VIEWS[view](noise(7, 5))
    expected = float((viewed.numpy().astype(np.float64) ** 2).sum())
    assert llmctl_ops.sum_squares([viewed, paddle.zeros([0, 3])[:, ::2]]) == pytest.approx(expected, rel=1e-6)
