"""Packed weights: what packing keeps, products with them in numpy against float64, and what is refused."""

import subprocess
import sys

import numpy as np
import pytest

from llmctl.infer.packed.linear import (
    STRIP,
    aligned,
    bits_of,
    concat_outputs,
    joined,
    pack,
    pack_codes,
    parts_of,
    product,
    rounded,
    rows,
    unpack,
    unpack_codes,
)

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


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("kind", "group", "shifted"), CASES)
def test_a_product_is_that_of_the_rounded_rows_with_the_unpacked_weight(kind, group, shifted):
    packed, x, bias = pack(drawn(100, 33), kind, group, shifted), drawn(7, 100, seed=1), drawn(33, seed=2)
    seen = (rounded(x) if kind.startswith("int") else x).astype(np.float64)
    weight = unpack(packed).astype(np.float64)
    y = product(x, packed, bias)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, seen @ weight + bias, rtol=0, atol=1e-4 if shifted else 3e-5)
    np.testing.assert_array_equal(product(x[:0], packed, bias), np.zeros((0, 33)))


@pytest.mark.parametrize(
    ("kind", "group", "weights_alone", "factor"), [("int8", 32, 0.0065, 1.6), ("int4", 32, 0.10, 1.01)]
)
def test_rounding_rows_adds_little_to_what_rounding_weights_costs(kind, group, weights_alone, factor):
    weight, x = drawn(1024, 64), drawn(20, 1024, seed=1)
    packed, exact = pack(weight, kind, group), x.astype(np.float64) @ weight

    def error(y):
        return np.linalg.norm(y - exact) / np.linalg.norm(exact)

    rounding = error(x.astype(np.float64) @ unpack(packed))
    assert rounding < weights_alone
    assert error(product(x, packed)) < factor * rounding


def test_stretches_of_values_next_to_0_are_0():
    x = np.full((2, 64), 1e-38, np.float32)
    x[1, :32] = 1
    found = rounded(x)
    assert np.isfinite(found).all() and not found[0].any() and (found[1] == [1] * 32 + [0] * 32).all()


@pytest.mark.parametrize("outputs", [16, 33])
def test_float32_is_kept_and_bfloat16_is_the_nearest(outputs):
    weight = drawn(70, outputs)
    np.testing.assert_array_equal(unpack(pack(weight, "float32")), weight)
    kept = unpack(pack(weight, "bfloat16"))
    assert (np.abs(kept - weight) <= np.abs(weight) * 2.0**-8).all() and not (kept.view(np.uint32) & 0xFFFF).any()
    np.testing.assert_array_equal(unpack(pack(kept, "bfloat16")), kept)
    odd = np.array([[np.inf, -np.inf, np.nan, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 3.4e38]], np.float32)
    expected = np.array([[np.inf, -np.inf, np.nan, 1, 1 + 2.0**-6, np.inf]], np.float32)
    np.testing.assert_array_equal(unpack(pack(odd, "bfloat16")), expected)


@pytest.mark.parametrize(("kind", "group", "shifted"), CASES[3:])
def test_a_code_is_the_nearest_one(kind, group, shifted):
    weight = drawn(200, 21) + (3 if shifted else 0)
    packed = pack(weight, kind, group, shifted)
    scales = packed.scales.reshape(2, -1, 16)[:, np.arange(200) // (group or 200)].transpose(1, 0, 2).reshape(200, -1)
    # Of 4 bits symmetric, the largest magnitude of one sign may lie half a code further off (and the scale is rounded): there is no code 8.
    most = 1.01 if kind == "int4" and not shifted else 0.501
    assert (np.abs(unpack(packed) - weight) <= most * np.abs(scales[:, :21]) + 1e-6).all()
    again = pack(unpack(packed), kind, group, shifted)
    np.testing.assert_allclose(unpack(again), unpack(packed), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "group"), [("int8", 0), ("int8", 64), ("int4", 32), ("int4", 0)])
@pytest.mark.parametrize("with_zeros", [False, True])
def test_codes_chosen_elsewhere_keep_their_meaning(kind, group, with_zeros):
    random, inputs, outputs = np.random.default_rng(3), 160, 23
    least, most = {"int8": (-128, 127), "int4": (-8, 7)}[kind]
    codes = random.integers(least, most + 1, (inputs, outputs))
    codes[0], codes[1] = least, most
    shape = (-(-inputs // group) if group else 1, outputs)
    scales = random.uniform(0.1, 1, shape).astype(np.float32)
    zeros = random.integers(-5, 6, shape).astype(np.float32) if with_zeros else None
    at = np.arange(inputs) // (group or inputs)
    weight = (codes + (zeros[at] if with_zeros else 0)) * scales[at].astype(np.float64)
    packed = pack_codes(codes, scales if group else scales[0], zeros, kind, group)
    np.testing.assert_allclose(unpack(packed), weight, rtol=1e-6)


@pytest.mark.parametrize(("kind", "group", "shifted"), CASES)
def test_a_weight_of_many_outputs_is_packed_in_strips_as_its_parts_are(kind, group, shifted):
    weight, x = drawn(70, 2 * STRIP + 40), drawn(3, 70, seed=1)
    packed = pack(weight, kind, group, shifted)
    for columns in (slice(0, 32), slice(STRIP - 16, STRIP + 16), slice(2 * STRIP, None)):
        part = pack(weight[:, columns], kind, group, shifted)
        np.testing.assert_array_equal(unpack(packed)[:, columns], unpack(part))
        np.testing.assert_allclose(product(x, packed)[:, columns], product(x, part), rtol=1e-5, atol=1e-5)
    assert packed.data.ctypes.data % 64 == 0


@pytest.mark.parametrize(("kind", "group"), [("int8", 0), ("int4", 32)])
def test_inputs_of_codes_have_an_order_and_factors(kind, group):
    random = np.random.default_rng(4)
    codes = random.integers(-8, 8, (100, 40))
    scales = random.uniform(0.1, 1, (4 if group else 1, 40)).astype(np.float16)
    order, factors = random.permutation(100), random.uniform(0.5, 2, 100).astype(np.float32)
    packed = pack_codes(codes, scales, None, kind, group, order, factors)
    plain = unpack(pack_codes(codes, scales, None, kind, group))
    weight = np.empty_like(plain)
    weight[order] = plain * factors[:, None]
    np.testing.assert_allclose(unpack(packed), weight, rtol=1e-6)
    np.testing.assert_array_equal(unpack_codes(packed), plain)
    x = drawn(5, 100)
    np.testing.assert_allclose(product(x, packed), rounded(x[:, order] * factors) @ plain, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="factors differ"):
        concat_outputs([pack_codes(codes[:, :32], scales[:, :32], None, kind, group, order), packed])


def test_scales_are_halves_where_these_hold_them():
    codes, scales = drawn(64, 16).round().astype(int), np.full((2, 16), 0.1, np.float32)
    exact = pack_codes(codes, scales, None, "int4", 32)
    assert exact.scales.dtype == np.float32 and (exact.scales == np.float32(0.1)).all()
    near = pack_codes(codes, scales.astype(np.float16), scales * 0 + 3, "int4", 32)
    assert near.scales.dtype == near.zeros.dtype == np.float16
    assert pack_codes(codes, scales.astype(np.float16), scales, "int4", 32).scales.dtype == np.float32
    for factor, dtype in ((1, np.float16), (1e-5, np.float32), (1e7, np.float32)):
        packed = pack(drawn(64, 16) * factor, "int4", 32)
        assert packed.scales.dtype == dtype
        assert np.abs(unpack(packed) - drawn(64, 16) * factor).max() < 0.4 * factor
    shifted = pack(np.linspace(1000, 1001, 64, dtype=np.float32)[:, None], "int8", 0, True)
    assert shifted.zeros.dtype == np.float32 and np.ptp(unpack(shifted)) > 0.99


def test_outputs_are_read_one_by_one():
    for kind, group, shifted in CASES:
        packed = pack(drawn(70, 50), kind, group, shifted)
        chosen = np.array([49, 3, 3, 17])
        np.testing.assert_array_equal(rows(packed, chosen), unpack(packed)[:, chosen].T)
    assert rows(packed, chosen[:0]).shape == (0, 70)


def test_weights_that_are_not_alike_do_not_join():
    whole, odd = pack(drawn(32, 16), "int8"), pack(drawn(32, 17), "int8")
    np.testing.assert_array_equal(unpack(concat_outputs([whole, odd]))[:, 16:], unpack(odd))
    for parts in ([odd, whole], [whole, pack(drawn(32, 16), "int4")], [whole, pack(drawn(64, 16), "int8")]):
        with pytest.raises(ValueError, match="do not join"):
            concat_outputs(parts)


def test_a_weight_of_several_kinds_is_its_parts_side_by_side():
    first, second = pack(drawn(64, 16), "int4", 32), pack(drawn(64, 32, seed=1), "int8", 64)
    both = joined([first, second])
    assert (both.kind, both.inputs, both.outputs, parts_of(both)) == ("int4+int8", 64, 48, (first, second))
    np.testing.assert_array_equal(unpack(both), np.concatenate([unpack(first), unpack(second)], axis=1))
    # Scales of 16 bits: 4 + 16 / 32 for a third of the weights, 8 + 16 / 64 for the others.
    assert bits_of([both]) == pytest.approx((4.5 + 2 * 8.25) / 3)
    assert joined([first]) is first and bits_of([first, second]) == bits_of([both])


def test_weights_codes_and_rows_that_do_not_fit_are_refused():
    weight = drawn(64, 32)
    with pytest.raises(ValueError, match="float8"):
        pack(weight, "float8")
    with pytest.raises(ValueError, match="float16 ends at 65504, and a value of .* is beyond"):
        pack(weight * 1e6, "float16")
    for order in (np.zeros(64, int), np.arange(63)):
        with pytest.raises(ValueError, match="order"):
            pack_codes(np.zeros((64, 16), int), np.ones(16), None, "int8", 0, order)
    with pytest.raises(ValueError, match="factors of a weight of 64 inputs"):
        pack_codes(np.zeros((64, 16), int), np.ones(16), None, "int8", 0, None, np.ones(63))
    with pytest.raises(ValueError, match="multiple of 32"):
        pack(weight, "int4", 48)
    with pytest.raises(ValueError, match="group"):
        pack(weight, "float32", 32)
    with pytest.raises(ValueError, match="matrix"):
        pack(weight[0], "float32")
    with pytest.raises(ValueError, match="not finite"):
        pack(weight * np.inf, "int8")
    with pytest.raises(ValueError, match="-128 to 127"):
        pack_codes(np.full((32, 16), -129), np.ones(16), None, "int8", 0)
    with pytest.raises(ValueError, match="takes scales"):
        pack_codes(np.zeros((64, 16), int), np.ones(16), None, "int4", 32)
    with pytest.raises(ValueError, match="has no codes"):
        pack_codes(np.zeros((64, 16), int), np.ones(16), None, "float32", 0)
    with pytest.raises(ValueError, match="64 inputs"):
        product(drawn(2, 63), pack(weight, "int8"))


def test_memory_begins_at_a_line_of_the_cache():
    assert all(aligned(size).ctypes.data % 64 == 0 and aligned(size).size == size for size in (1, 64, 1000))
    assert pack(drawn(40, 40), "int4").data.ctypes.data % 64 == 0


def test_packed_weights_need_no_paddle_and_no_kernels():
    script = """
import sys
sys.modules["llmctl_ops"] = None
from llmctl.infer.packed import linear as packed_linear
import numpy as np
weight = np.eye(64, dtype=np.float32)
assert (packed_linear.product(weight, packed_linear.pack(weight, "float32")) == weight).all()
assert "paddle" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
