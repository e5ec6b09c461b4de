"""Scales of 8-bit inputs are kept where they help the engine, which gives every 32 inputs of a row their own range."""

import numpy as np
import pytest

from llmctl.infer.quantize.scales import Seen, _smooth, _Stage
from llmctl.infer.quantize.settings import Settings
from llmctl.quant.methods.statistics import InputStatistics

INPUTS = 128
EIGHT_BITS = Settings("ptq-a8w8", 8, 0, q_bits=8, kv_bits=8)


def searched(size_I):
    """What is found for inputs of these sizes, and squared errors of fresh outputs in 8 bits without and with it."""
    rng = np.random.default_rng(3)
    weight_IO = rng.standard_normal((INPUTS, 96)).astype(np.float32) * 0.1
    rows, held, fresh = (rng.standard_normal((400, INPUTS)).astype(np.float32) * size_I for _ in range(3))
    seen = Seen(InputStatistics(INPUTS))
    seen.statistics.add(rows)
    seen.rows.add(rows)
    seen.held.add(held)
    found = _smooth(_Stage(seen, weight_IO, np.arange(INPUTS)), EIGHT_BITS, False)
    scales = [np.ones(INPUTS)] if found.fold is None else [np.ones(INPUTS), found.fold.scale_I]
    return found, [error(fresh, weight_IO, scale_I) for scale_I in scales]


def error(x_TI, weight_IO, scale_I):
    x_TSE = (x_TI / scale_I).reshape(len(x_TI), -1, 32)
    unit_TS1 = np.abs(x_TSE).max(-1, keepdims=True) / 127
    rounded_TI = (np.rint(x_TSE / unit_TS1) * unit_TS1).reshape(x_TI.shape)
    scaled_IO = weight_IO * scale_I[:, None]
    unit_O = np.abs(scaled_IO).max(0) / 127
    return ((rounded_TI @ (np.rint(scaled_IO / unit_O) * unit_O) - x_TI @ weight_IO) ** 2).mean()


def test_outliers_among_others_are_smoothed():
    size_I = np.ones(INPUTS, np.float32)
    size_I[::16] = 40
    found, (before, after) = searched(size_I)
    assert found.choice and after < 0.5 * before


@pytest.mark.parametrize("apart", [1, 12])
def test_inputs_that_have_ranges_of_their_own_stay_as_they_are(apart):
    """A range for all of them would be too wide for most, but no linear reads them so."""
    found, errors = searched(np.repeat(np.float32([apart, 1, 1, 1]), 32))
    assert found.fold is None or errors[1] < errors[0]
    assert apart == 1 or found.reason == "none is better as the engine rounds inputs"
