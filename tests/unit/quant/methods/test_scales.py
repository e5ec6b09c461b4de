"""Scales and offsets of input channels against the statements of the papers and of PaddleSlim's layers."""

from __future__ import annotations

import numpy as np
import pytest
from tests.kit import quant_reference

from llmctl.quant.methods import scale_search, shift, smooth
from llmctl.quant.methods.grids import fit
from llmctl.quant.methods.statistics import HeldRows, InputStatistics, Products

RNG = np.random.default_rng(3)
X = (RNG.standard_normal((200, 48)) * np.where(np.arange(48) % 9 == 0, 30, 1)).astype(np.float64)
WEIGHT = RNG.standard_normal((48, 24))
LARGEST, WEIGHTS = np.abs(X).max(0), np.abs(WEIGHT).max(1)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8])
def test_smooth_scales_are_those_of_the_reference(alpha: float) -> None:
    expected = quant_reference.smooth_scale(LARGEST, WEIGHT, alpha)
    assert np.allclose(smooth.smooth_scale(LARGEST, WEIGHTS, alpha), expected, rtol=1e-12)


def test_channels_of_zeros_keep_the_scale_1() -> None:
    largest, weights = LARGEST.copy(), WEIGHTS.copy()
    largest[3] = weights[5] = 0
    assert smooth.smooth_scale(largest, weights, 0.5)[[3, 5]].tolist() == [1, 1]
    assert scale_search.awq_scale(largest, weights, 0.5)[3] == 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_piecewise_search_chooses_what_the_reference_chooses(count: int) -> None:
    labels = smooth.pieces(LARGEST, count)
    found, chosen = smooth.search(
        lambda s: smooth.w8a8_loss(X, WEIGHT, s), lambda a: smooth.smooth_scale(LARGEST, WEIGHTS, a), labels
    )
    assert np.allclose(found, quant_reference.piecewise_scale(X, WEIGHT, LARGEST, labels), rtol=1e-6)
    assert len(chosen) == count
    assert smooth.w8a8_loss(X, WEIGHT, found) < smooth.w8a8_loss(X, WEIGHT, np.ones(48))


def test_rows_that_are_a_part_are_rounded_by_the_range_of_all() -> None:
    part, ones = X[:8], np.ones(48)
    coarse = np.rint(part / 300 * 127) / 127 * 300
    unit = np.abs(WEIGHT).max(0)
    weight = np.rint(WEIGHT / unit * 127) / 127 * unit
    expected = ((part @ WEIGHT - coarse @ weight) ** 2).mean()
    assert smooth.w8a8_loss(part, WEIGHT, ones, largest_I=np.full(48, 300.0)) == pytest.approx(expected)
    assert expected > 5 * smooth.w8a8_loss(part, WEIGHT, ones)


def test_candidates_are_those_of_the_reference() -> None:
    assert smooth.candidates() == quant_reference.candidates()


def test_pieces_rise_with_the_largest_magnitude() -> None:
    piece = smooth.pieces(np.array([1.0, 100, 1.2, 10, 11, 0.9]), 3)
    assert piece.tolist() == [0, 2, 0, 1, 1, 0]
    assert smooth.pieces(np.ones(5), 3).max() <= 2


def test_a_moving_mean_is_that_of_adam() -> None:
    batches = [RNG.standard_normal(5) + 3 for _ in range(7)]
    weights = 0.98 ** np.arange(6, -1, -1)
    assert np.allclose(shift.moving_mean(batches), np.average(batches, axis=0, weights=weights), rtol=1e-12)
    assert np.allclose(shift.moving_mean(batches[:1]), batches[0])


def test_awq_takes_outlier_channels_out_of_the_weight() -> None:
    outliers = np.arange(64) % 16 == 0
    weight = RNG.standard_normal((64, 32)) / np.where(outliers, 30, 1)[:, None]
    x = RNG.standard_normal((400, 64)) * np.where(outliers, 30, 1)
    share, magnitude = scale_search.weight_share(weight, 32), np.abs(x).mean(0)

    def loss(scale: np.ndarray) -> float:
        grid = fit(weight * scale[:, None], 4, 32)
        values = grid.values(grid.codes(weight * scale[:, None])) / scale[:, None]
        return float(((x @ (values - weight)) ** 2).mean())

    scale, ratio, before, after = scale_search.search(
        loss, lambda r: scale_search.awq_scale(magnitude, share, r), len(weight)
    )
    assert ratio is not None
    assert after < 0.1 * before
    assert 20 < scale[outliers].mean() / scale[~outliers].mean() < 45


def test_a_search_without_a_better_ratio_keeps_no_scales() -> None:
    scale, ratio, before, after = scale_search.search(lambda s: float(np.ptp(s)), lambda r: np.array([1, 2 + r]), 2)
    assert scale.tolist() == [1, 1]
    assert (ratio, before, after) == (None, 0.0, 0.0)


def test_statistics_are_those_of_all_batches() -> None:
    statistics, x = InputStatistics(6), RNG.standard_normal((50, 6)).astype(np.float32)
    for start in range(0, 50, 7):
        statistics.add(x[start : start + 7])
    statistics.add(x[:0])
    assert statistics.tokens == 50
    assert np.allclose(statistics.mean_magnitude_I, np.abs(x).mean(0), rtol=1e-6)
    assert np.allclose([statistics.low_I, statistics.high_I], [x.min(0), x.max(0)])
    x[3, 4] = np.inf
    with pytest.raises(ValueError, match="input 4 is not finite"):
        statistics.add(x)


@pytest.mark.parametrize("outputs", [2, 9])
def test_what_outputs_miss_is_the_same_whichever_product_comes_first(outputs: int) -> None:
    x, float_x = (RNG.standard_normal((50, 6)).astype(np.float32) for _ in range(2))
    weight = RNG.standard_normal((6, outputs)).astype(np.float32)
    products = Products(weight, missing=True)
    for start in range(0, 50, 7):
        products.add(x[start : start + 7], float_x[start : start + 7])
    products.add(x[:0], float_x[:0])
    assert products.tokens == 50
    assert np.allclose(products.gram_II, x.T @ x, rtol=1e-5)
    assert (products.times_KO is None) == (outputs == 2)
    missing = products.missing_IK if products.times_KO is None else products.missing_IK @ products.times_KO
    assert np.allclose(missing, x.T @ ((float_x - x) @ weight), atol=1e-4)
    assert Products(weight, missing=False).missing_IK is None
    x[3, 4] = np.nan
    with pytest.raises(ValueError, match="input 4 is not finite"):
        products.add(x, float_x)


def test_a_gram_matrix_of_several_strips_is_symmetric_and_whole() -> None:
    x = RNG.standard_normal((40, 600)).astype(np.float32)
    products = Products(np.zeros((600, 4), np.float32), missing=False)
    for rows in (x[:30], x[30:]):
        products.add(rows, rows)
        assert np.array_equal(products.gram_II[300:, :256], products.gram_II[:256, 300:].T)
    assert np.allclose(products.gram_II, x.T.astype(np.float64) @ x, atol=1e-4)


def test_held_rows_are_spread_over_all_that_were_offered() -> None:
    held = HeldRows(8)
    for start in range(0, 100, 10):
        held.add(np.arange(start, start + 10)[:, None], -np.arange(start, start + 10)[:, None])
    rows, negative = held.arrays(2)
    assert len(held) <= 8
    assert rows[-1, 0] > 80
    assert np.array_equal(rows, -negative)
