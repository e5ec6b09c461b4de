"""Blocks of GGUF, against the package ``gguf``."""

import gguf
import numpy as np
import pytest

from llmctl.quant.formats.gguf_blocks import BY_NAME, TYPES, UNREAD, encode, encode_codes

CODED = [kind for kind in TYPES.values() if kind.decode is not None]


@pytest.mark.parametrize("kind", CODED, ids=lambda kind: kind.name)
def test_blocks_of_any_bytes_are_read_as_the_package_reads_them(kind):
    number = gguf.GGMLQuantizationType[kind.name]
    assert TYPES[number.value] is kind and gguf.GGML_QUANT_SIZES[number] == (kind.size, kind.nbytes)
    raw = np.random.default_rng(0).integers(0, 256, (200, kind.nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        wanted, found = gguf.dequantize(raw, number), kind.decode(raw).values()
    finite = np.isfinite(wanted).all(axis=1)
    assert finite.sum() > 100
    np.testing.assert_array_equal(found[finite], wanted[finite])


def test_types_that_are_not_read_have_their_names():
    assert {kind.value: kind.name for kind in gguf.GGMLQuantizationType if kind.value not in TYPES} == UNREAD


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1"])
def test_values_are_rounded_as_the_package_rounds_them(name):
    values = np.random.default_rng(1).standard_normal((40, 96)).astype(np.float32)
    values[0, :32], values[1, :32], values[2, 32:64] = 0, 2, np.linspace(-1e-6, 1e-6, 32)
    found = encode(values, name)
    np.testing.assert_array_equal(found.reshape(40, -1), gguf.quantize(values, gguf.GGMLQuantizationType[name]))


@pytest.mark.parametrize(("name", "least", "most"), [("Q8_0", -128, 127), ("Q4_0", -8, 7)])
def test_codes_are_kept(name, least, most):
    random = np.random.default_rng(2)
    codes, scales = random.integers(least, most + 1, (6, 64)), random.uniform(0.01, 0.1, (6, 2)).astype(np.float16)
    raw = encode_codes(codes, scales.astype(np.float32), name)
    meant = codes * np.repeat(scales.astype(np.float32), 32, axis=1)
    np.testing.assert_array_equal(
        gguf.dequantize(raw.reshape(6, -1), gguf.GGMLQuantizationType[name]), meant.astype(np.float32)
    )
    with pytest.raises(ValueError, match=f"codes from {least} to {most}"):
        encode_codes(codes + 1, scales.astype(np.float32), name)
    with pytest.raises(ValueError, match="scales in float16"):
        encode_codes(codes, np.full((6, 2), 0.1, np.float32), name)


def test_values_that_no_block_holds_are_refused():
    for value, message in ((np.nan, "not finite"), (1e9, "ends at 65504")):
        with pytest.raises(ValueError, match=message):
            encode(np.full((1, 32), value, np.float32), "Q8_0")
    assert BY_NAME["Q4_K"].size == 256
