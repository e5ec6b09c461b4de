"""Products of kernels with packed weights, against float64. Packing itself is core's."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from llmctl.infer.packed import linear as packed_linear
from llmctl.infer.packed.linear import STRIP, pack, pack_codes, rounded, unpack
from llmctl_ops import library, linear
from llmctl_ops.linear import as_struct, product

CASES = [
    ("float32", 0, False),
    ("bfloat16", 0, False),
    ("float16", 0, False),
    ("int8", 0, False),
    ("int8", 0, True),
    ("int8", 64, False),
    ("int8", 32, True),
    ("int4", 0, False),
    ("int4", 32, False),
    ("int4", 64, True),
    ("int4", 128, False),
]
SHAPES = [(1, 1), (5, 3), (31, 16), (32, 17), (40, 33), (64, 48), (100, 130), (129, 16), (416, 50), (1100, 70)]
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 17, 24, 25, 33, 40]


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def seen(x, kind):
    """The rows that a product of this kind multiplies, in float64."""
    return (rounded(x) if kind.startswith("int") else x).astype(np.float64)


def expected(x, weight, bias=0.0, shifted=False):
    """What float64 gives, and what float32 sums may lose of it; codes and zeros may cancel."""
    weight = weight.astype(np.float64)
    size = np.abs(weight) + (4 * np.abs(weight).max(0) if shifted else 0)
    return x @ weight + bias, 4e-6 * (np.abs(x) @ size + np.abs(bias)) + 1e-30


def bounded(ours, right, allowed):
    assert ours.dtype == np.float32 and ours.shape == right.shape
    assert (np.abs(ours - right) <= allowed).all()


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_stretches_of_values_next_to_0_are_0(level, kind):
    packed = pack(drawn(64, 16), kind)
    x = np.full((2, 64), 1e-38, np.float32)
    x[1, :32] = 1
    found = product(x, packed)
    assert not found[0].any() and np.isfinite(rounded(x)).all()
    bounded(found[1:], *expected(seen(x[1:], kind), unpack(packed)))


@pytest.fixture(params=[1, 2])
def threads(request):
    before = library.set_threads(request.param)
    yield request.param
    library.set_threads(before)


@pytest.mark.parametrize(("kind", "group", "shifted"), CASES)
def test_products_are_those_of_the_unpacked_weight(level, threads, kind, group, shifted):
    for index, (inputs, outputs) in enumerate(SHAPES):
        packed, bias = pack(drawn(inputs, outputs, seed=index), kind, group, shifted), drawn(outputs, seed=99)
        bias = bias if index % 2 else None
        x = drawn(300 if index in (1, 5) else 40, inputs, seed=50 + index)
        right, allowed = expected(seen(x, kind), unpack(packed), 0.0 if bias is None else bias, shifted)
        for rows in [rows for rows in (*ROWS[index % 3 :: 3], 300) if rows <= len(x)]:
            bounded(product(x[:rows], packed, bias), right[:rows], allowed[:rows])


@pytest.mark.parametrize(("kind", "group"), [("int8", 0), ("int8", 64), ("int4", 32), ("int4", 0)])
@pytest.mark.parametrize("with_zeros", [False, True])
@pytest.mark.parametrize("scale_type", [np.float16, np.float32])
def test_codes_chosen_elsewhere_keep_their_meaning(level, kind, group, with_zeros, scale_type):
    random, inputs, outputs = np.random.default_rng(3), 160, 23
    least, most = {"int8": (-128, 127), "int4": (-8, 7)}[kind]
    codes = random.integers(least, most + 1, (inputs, outputs))
    codes[0], codes[1] = least, most
    shape = (-(-inputs // group) if group else 1, outputs)
    scales = random.uniform(0.1, 1, shape).astype(scale_type)
    zeros = random.integers(-5, 6, shape).astype(np.float32) if with_zeros else None
    at = np.arange(inputs) // (group or inputs)
    weight = (codes + (zeros[at] if with_zeros else 0)) * scales[at].astype(np.float64)
    packed = pack_codes(codes, scales if group else scales[0], zeros, kind, group)
    assert packed.scales.dtype == scale_type
    np.testing.assert_allclose(unpack(packed), weight, rtol=1e-6)
    # Whole numbers up to 127 of which each stretch has one at 127 are not rounded: only the sums are.
    x = random.integers(-127, 128, (9, inputs)).astype(np.float32)
    x[:, ::32] = -127
    for rows in (1, 9):
        bounded(product(x[:rows], packed), *expected(x[:rows].astype(np.float64), weight, 0.0, with_zeros))


@pytest.mark.parametrize(("kind", "group"), [("int8", 0), ("int8", 32), ("int4", 64)])
@pytest.mark.parametrize("parts", ["order", "factors", "both"])
def test_inputs_are_ordered_and_multiplied_before_rows_are_rounded(level, threads, kind, group, parts):
    random, inputs = np.random.default_rng(4), 110
    codes = random.integers(-8, 8, (inputs, 37))
    scales = random.uniform(0.1, 1, (-(-inputs // group) if group else 1, 37)).astype(np.float16)
    order = None if parts == "factors" else random.permutation(inputs)
    factors = None if parts == "order" else random.uniform(0.5, 2, inputs).astype(np.float32)
    packed = pack_codes(codes, scales, None, kind, group, order, factors)
    x = drawn(30, inputs)
    right, allowed = expected(packed_linear.seen(x, packed).astype(np.float64), packed_linear.unpack_codes(packed))
    for rows in (1, 3, 30):
        bounded(product(x[:rows], packed), right[:rows], allowed[:rows])


def test_order_and_factors_that_do_not_fit_are_refused():
    packed = pack(drawn(64, 32), "int8")
    far = np.full(64, 64, np.int32)
    for part, value in (("order", far), ("order", far[:5]), ("factors", drawn(63))):
        with pytest.raises(ValueError, match=part):
            as_struct(dataclasses.replace(packed, **{part: value}))
    with pytest.raises(ValueError, match="takes neither order nor factors"):
        as_struct(dataclasses.replace(pack(drawn(64, 32), "float32"), factors=drawn(64)))


@pytest.mark.parametrize(
    ("kind", "group", "weights_alone", "factor"),
    [("int8", 0, 0.011, 1.3), ("int8", 32, 0.0065, 1.6), ("int4", 32, 0.10, 1.01), ("int4", 128, 0.13, 1.01)],
)
def test_rounding_rows_adds_little_to_what_rounding_weights_costs(level, kind, group, weights_alone, factor):
    weight, x = drawn(1024, 64), drawn(20, 1024, seed=1)
    packed, exact = pack(weight, kind, group), x.astype(np.float64) @ weight

    def error(y):
        return np.linalg.norm(y - exact) / np.linalg.norm(exact)

    rounding = error(x.astype(np.float64) @ unpack(packed))
    assert rounding < weights_alone
    assert error(product(x, packed)) < factor * rounding


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "int8", "int4"])
def test_what_is_no_number_stays_none_and_leaves_other_rows_alone(level, kind):
    packed, x = pack(drawn(96, 40), kind), drawn(5, 96, seed=1)
    x[1, 50], x[3, 7] = np.nan, np.inf
    y = product(x, packed)
    assert not np.isfinite(y[[1, 3]]).any() and np.isfinite(y[[0, 2, 4]]).all()


@pytest.mark.parametrize("kind", ["float32", "int8", "int4"])
def test_rows_of_zeros_and_no_rows_at_all(level, kind):
    packed, bias = pack(drawn(40, 20), kind), drawn(20, seed=3)
    np.testing.assert_array_equal(product(np.zeros((3, 40), np.float32), packed, bias), np.tile(bias, (3, 1)))
    assert product(np.zeros((0, 40), np.float32), packed, bias).shape == (0, 20)


@pytest.mark.parametrize(
    ("kind", "group"), [("float32", 0), ("bfloat16", 0), ("float16", 0), ("int8", 0), ("int4", 64)]
)
@pytest.mark.parametrize("outputs", [90, 160])
def test_a_row_gives_the_same_to_the_last_bit_alone_and_among_others(level, kind, group, outputs):
    packed, x, bias = pack(drawn(1300, outputs), kind, group), drawn(270, 1300, seed=1), drawn(outputs, seed=2)
    together = product(x, packed, bias)
    for rows in (1, 2, 7, 30):
        np.testing.assert_array_equal(product(x[:rows], packed, bias), together[:rows])


@pytest.mark.parametrize(("kind", "group", "shifted"), CASES)
def test_a_weight_packed_in_strips_multiplies_as_its_parts_do(level, kind, group, shifted):
    weight, x = drawn(70, 2 * STRIP + 40), drawn(3, 70, seed=1)
    packed = pack(weight, kind, group, shifted)
    as_struct(packed)
    for columns in (slice(0, 32), slice(STRIP - 16, STRIP + 16), slice(2 * STRIP, None)):
        part = pack(weight[:, columns], kind, group, shifted)
        np.testing.assert_array_equal(product(x, packed)[:, columns], product(x, part))
    assert packed.data.ctypes.data % 64 == 0


@pytest.mark.usefixtures("level")
def test_weights_and_calls_that_do_not_fit_are_refused():
    packed = pack(drawn(64, 32), "int8")
    with pytest.raises(ValueError, match="64 inputs"):
        product(drawn(2, 63), packed)
    for part, value in (("data", packed.data[:-1]), ("scales", None), ("zeros", packed.scales[1:])):
        with pytest.raises(ValueError, match=part):
            as_struct(dataclasses.replace(packed, **{part: value}))
    with pytest.raises(ValueError, match="bias"):
        as_struct(packed, drawn(31))
    for part, value, message in (("kind", "float8", "float8"), ("group", 48, "multiple of 32")):
        with pytest.raises(ValueError, match=message):
            as_struct(dataclasses.replace(packed, **{part: value}))


def test_without_a_library_there_are_no_products(monkeypatch):
    monkeypatch.setattr(library, "load", lambda: library.open_library(library.FILE, "reference"))
    with pytest.raises(RuntimeError, match="no compiled kernels: LLMCTL_OPS=reference"):
        product(drawn(2, 64), pack(drawn(64, 32), "int8"))


def test_kernels_read_what_core_packs():
    assert (linear.LAYOUT, linear.PANEL, linear.QUANT_BLOCK) == (
        packed_linear.LAYOUT, packed_linear.PANEL, packed_linear.STRETCH,
    )  # fmt: skip
    assert (tuple(linear.KINDS), set(linear.CODES)) == (packed_linear.KINDS, set(packed_linear.LIMITS))


def test_products_need_no_paddle():
    script = """
import sys
from llmctl.infer.packed.linear import pack
from llmctl_ops import library, linear
import numpy as np
library.set_threads(2)
weight, found = np.eye(64, dtype=np.float32), library.load()
if found.handle is not None:
    assert (linear.product(weight, pack(weight, "float32")) == weight).all() and found.threads == "libiomp5.so", found
assert "paddle" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_threads_are_at_least_one():
    with pytest.raises(ValueError, match="at least 1"):
        library.set_threads(0)
