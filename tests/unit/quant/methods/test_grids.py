"""Grids: the range of each group, scales that float16 holds, zero points that are whole numbers."""

from __future__ import annotations

import numpy as np
import pytest

from llmctl.quant.methods.grids import FORMS, LIMITS, Grid, fit

RNG = np.random.default_rng(5)
WEIGHT = RNG.standard_normal((172, 33)).astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [0, 32, 64, 500])
def test_every_weight_is_within_a_step_and_a_half_of_its_value(bits: int, group: int, form: str) -> None:
    grid = fit(WEIGHT, bits, group, form)
    codes = grid.codes(WEIGHT)
    assert codes.min() >= LIMITS[bits][0] and codes.max() <= LIMITS[bits][1]
    steps = np.abs(grid.rows(np.arange(len(WEIGHT)))[0])
    # Zero points and scales are rounded, so that the ends of the range may be half a step beyond the codes.
    assert (np.abs(grid.values(codes) - WEIGHT) <= 1.02 * steps).all()
    assert np.array_equal(grid.scales_GO, grid.scales_GO.astype(np.float16).astype(np.float32))
    assert np.array_equal(grid.zeros_GO, np.rint(grid.zeros_GO))


@pytest.mark.parametrize("form", FORMS)
def test_a_search_is_never_worse_than_the_full_range_by_its_own_measure(form: str) -> None:
    importance = RNG.random(len(WEIGHT))

    def loss(grid: Grid) -> float:
        return float((importance[:, None] * (grid.values(grid.codes(WEIGHT)) - WEIGHT) ** 2).sum())

    assert loss(fit(WEIGHT, 4, 64, form, importance)) < loss(fit(WEIGHT, 4, 64, form))


@pytest.mark.parametrize("unit", [2.0**-200, 2.0**200])
def test_a_search_does_not_depend_on_the_unit_of_the_inputs(unit: float) -> None:
    importance = RNG.random(len(WEIGHT))
    found, expected = (fit(WEIGHT, 4, 64, "signed", counted) for counted in (unit * importance, importance))
    assert np.array_equal(found.scales_GO, expected.scales_GO)


@pytest.mark.parametrize("form", FORMS)
def test_groups_of_zeros_and_constants_keep_their_values(form: str) -> None:
    weight = np.zeros((96, 3), np.float32)
    weight[32:64] = [0.5, -2, 1]
    grid = fit(weight, 8 if form == "symmetric" else 4, 32, form)
    assert np.abs(grid.values(grid.codes(weight)) - weight).max() < 2e-3


def test_strips_of_outputs_have_the_grids_of_the_whole() -> None:
    wide = RNG.standard_normal((64, 700)).astype(np.float32)
    whole = fit(wide, 4, 32, "asymmetric", np.ones(64))
    part = fit(wide[:, 300:303], 4, 32, "asymmetric", np.ones(64))
    assert np.array_equal(whole.scales_GO[:, 300:303], part.scales_GO)
    assert np.array_equal(whole.zeros_GO[:, 300:303], part.zeros_GO)


def test_a_weight_that_is_not_finite_is_refused_with_its_place() -> None:
    weight = WEIGHT.copy()
    weight[7, 2] = np.nan
    with pytest.raises(ValueError, match="from input 7 to output 2 is not finite"):
        fit(weight, 4, 32)
    with pytest.raises(ValueError, match="bits are 4 or 8"):
        fit(WEIGHT, 3, 32)
