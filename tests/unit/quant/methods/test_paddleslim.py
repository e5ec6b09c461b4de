"""PaddleSlim's GPTQ, PieceWiseSearch and Shift give what ours give; run where PaddleSlim is installed."""

import importlib.util
import sys

import numpy as np
import pytest

from llmctl.quant.methods import gptq, paddleslim, shift, smooth
from llmctl.quant.methods.grids import Grid

pytestmark = pytest.mark.slim


@pytest.fixture(scope="module", autouse=True)
def installed():
    if importlib.util.find_spec("paddleslim") is None:
        pytest.skip("PaddleSlim is not installed")
    paddleslim.check()


@pytest.fixture
def reference(assets, monkeypatch):
    """Numpy statements of PaddleSlim's methods, written from its source."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(assets.parent / "quant"))
    return __import__("slim_reference")


def made(inputs, outputs, seed=0):
    """Inputs of uneven size and offset, and a weight."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(size=inputs))
    x_TI = (rng.normal(size=(600, inputs)) * sizes + sizes).astype("f4")
    return x_TI, rng.normal(size=(inputs, outputs)).astype("f4")


@pytest.mark.parametrize(("inputs", "group"), [(96, 0), (160, 0), (128, 32), (256, 64)])
def test_gptq_chooses_the_codes_of_ours(inputs, group):
    x_TI, weight_IO = made(inputs, 40)
    gram_II = x_TI.T.astype("f8") @ x_TI
    codes_IO, scales_GO = paddleslim.gptq(weight_IO, gram_II, 4, group, 0.02)
    # The scales of groups come from weights that have taken up errors; ours are then given the same.
    grid = Grid(4, group or inputs, scales_GO, np.zeros_like(scales_GO))
    ours_IO = gptq.round_weight(weight_IO, grid, gptq.factor(gram_II, 0.02, by_activity=not group))
    assert scales_GO.shape == (inputs // group if group else 1, 40)
    if not group:
        np.testing.assert_allclose(scales_GO[0], np.abs(weight_IO).max(0) / 7, rtol=1e-6)
    # PaddleSlim computes in float32: a weight in the middle of two codes may fall to either, and later ones follow.
    assert (codes_IO == ours_IO).mean() > 0.995


def test_dead_inputs_and_none_are_the_same_to_it():
    x_TI, weight_IO = made(64, 8)
    x_TI[:, 5] = 0
    codes_IO, _ = paddleslim.gptq(weight_IO, x_TI.T.astype("f8") @ x_TI, 4, 0, 0.01)
    assert not codes_IO[5].any() and codes_IO[4].any()


@pytest.mark.assets
@pytest.mark.parametrize(("inputs", "group"), [(96, 0), (128, 32)])
def test_gptq_is_what_its_source_says(inputs, group, reference):
    x_TI, weight_IO = made(inputs, 24)
    gram_II = x_TI.T.astype("f8") @ x_TI
    codes_IO, scales_GO = paddleslim.gptq(weight_IO, gram_II, 4, group, 0.01)
    found = codes_IO * scales_GO[np.arange(inputs) // (group or inputs)]
    wanted = reference.gptq(weight_IO, gram_II, group=group or -1, actorder=not group)
    assert (np.abs(found - wanted) < 1e-4).mean() > 0.995


@pytest.mark.parametrize("pieces", [1, 3])
def test_piecewise_search_finds_the_scales_of_ours(pieces):
    x_TI, weight_IO = made(64, 50)
    # Three sizes far apart, which any clustering finds.
    x_TI *= np.array([1.0, 20.0, 400.0], "f4")[np.arange(64) % 3] / np.abs(x_TI).max(0)
    largest_I, outputs_I = np.abs(x_TI).max(0), np.abs(weight_IO).max(1)
    ours, _ = smooth.search(
        lambda scale_I: smooth.w8a8_loss(x_TI, weight_IO, scale_I),
        lambda alpha: smooth.smooth_scale(largest_I, outputs_I, alpha),
        smooth.pieces(largest_I, pieces),
    )
    np.testing.assert_allclose(paddleslim.piecewise_scale(x_TI, weight_IO, largest_I, pieces), ours, rtol=1e-5)


@pytest.mark.assets
def test_piecewise_search_is_what_its_source_says(reference):
    x_TI, weight_IO = made(64, 50, seed=1)
    largest_I = np.abs(x_TI).max(0)
    wanted, _ = reference.piecewise_scale(x_TI, weight_IO, largest_I, 3)
    np.testing.assert_allclose(paddleslim.piecewise_scale(x_TI, weight_IO, largest_I, 3), wanted, rtol=1e-5)


@pytest.mark.parametrize("group", [0, 32])
def test_awq_search_finds_the_best_of_its_ratios(group):
    x_TI, weight_IO = made(64, 50)
    magnitude_I, losses = np.abs(x_TI).mean(0, dtype="f8"), []
    for ratio in np.arange(20) / 20:
        scale_I = np.maximum(magnitude_I**ratio, 1e-4)
        scale_I /= np.sqrt(scale_I.max() * scale_I.min())
        scaled_GEO = (weight_IO * scale_I[:, None]).reshape(-1, group or 64, 50)
        step_GEO = np.abs(scaled_GEO).max(1, keepdims=True) / 7
        rounded_IO = (np.clip(np.rint(scaled_GEO / step_GEO), -8, 7) * step_GEO).reshape(64, 50)
        losses.append((((x_TI @ weight_IO) - (x_TI / scale_I) @ rounded_IO) ** 2).mean())
    best = np.argmin(losses) / 20
    wanted = magnitude_I**best / np.sqrt((magnitude_I**best).max() * (magnitude_I**best).min())
    assert best > 0
    np.testing.assert_allclose(paddleslim.awq_scale(x_TI, weight_IO, magnitude_I, 4, group), wanted, rtol=1e-4)


def test_shift_of_one_batch_is_the_middle_of_the_range():
    x_TI, _ = made(64, 8)
    wanted = shift.midpoint(x_TI.min(0), x_TI.max(0))
    np.testing.assert_allclose(paddleslim.shift_offset(x_TI), wanted, rtol=1e-5, atol=1e-6)
    # Names of layers count on in a process; a second model is paired as the first.
    np.testing.assert_allclose(paddleslim.shift_offset(x_TI), wanted, rtol=1e-5, atol=1e-6)
