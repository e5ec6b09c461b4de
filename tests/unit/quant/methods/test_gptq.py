"""GPTQ against its original recursion, and what must hold for any inputs."""

from __future__ import annotations

import numpy as np
import pytest
from tests.kit import quant_reference

from llmctl.quant.methods import gptq
from llmctl.quant.methods.choose import Inputs, Recipe, choose
from llmctl.quant.methods.grids import fit

RNG = np.random.default_rng(11)


def inputs(tokens: int, width: int, rank: int | None = None) -> np.ndarray:
    mixing = RNG.standard_normal((rank or width, width)) * RNG.gamma(1.0, 1.0, width)
    return (RNG.standard_normal((tokens, rank or width)) @ mixing).astype(np.float32)


@pytest.mark.parametrize("group", [0, 32, 64])
@pytest.mark.parametrize("width", [96, 172, 300])
def test_codes_are_those_of_the_original_recursion(width: int, group: int) -> None:
    x, weight = inputs(700, width).astype(np.float64), RNG.standard_normal((width, 40))
    grid = fit(weight, 4, group, "symmetric")
    scales = np.abs(grid.rows(np.arange(width))[0])
    expected = quant_reference.gptq(weight, x.T @ x, scales, 0.02)
    assert np.array_equal(gptq.round_weight(weight, grid, gptq.factor(x.T @ x, 0.02)), expected)


def test_float32_gives_the_codes_of_float64_but_for_ties() -> None:
    x, weight = inputs(700, 300), RNG.standard_normal((300, 200)).astype(np.float32)
    missing, factored = x.T @ inputs(700, 300), gptq.factor(x.T @ x, 0.01)
    single, double = (
        gptq.correct(of, missing, factored, 0.1, times_KO=of) for of in (weight, weight.astype(np.float64))
    )
    assert np.allclose(single, double, rtol=1e-3, atol=1e-3)
    grid = fit(double, 4, 64)
    codes, wide = (gptq.round_weight(double.astype(kind), grid, factored) for kind in (np.float32, np.float64))
    assert np.mean(codes != wide) < 1e-3


def test_a_correction_of_strength_1_is_the_damped_least_squares_weight() -> None:
    float_x, x, weight = inputs(500, 200).astype(np.float64), inputs(500, 200), RNG.standard_normal((200, 30))
    x = float_x + 0.1 * x
    gram = x.T @ x
    found = gptq.correct(weight, x.T @ (float_x @ weight - x @ weight), gptq.factor(gram, 0.05), 1.0)
    damped = gram + 0.05 * np.diag(gram).mean() * np.eye(200)
    expected = weight + np.linalg.solve(damped, x.T @ (float_x - x) @ weight)
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-9)
    later = gptq.correct(weight, x.T @ (float_x - x), gptq.factor(gram, 0.05), 1.0, times_KO=weight)
    assert np.allclose(later, expected, rtol=1e-9, atol=1e-9)


def test_the_damping_grows_until_the_matrix_can_be_factored() -> None:
    gram = np.ones((40, 40))
    gram[0, 1] = gram[1, 0] = 1.5
    assert gptq.factor(gram, 1e-9).damping > 0.1
    with pytest.raises(ValueError, match="whatever is added"):
        gptq.factor(np.full((4, 4), 1e9) - 0.5e9 * np.eye(4) - 2e15 * np.fliplr(np.eye(4)))
    with pytest.raises(ValueError, match="not finite"):
        gptq.factor(np.full((4, 4), np.nan))


def test_dead_inputs_do_not_change_the_codes_of_others() -> None:
    x, weight = inputs(400, 64), RNG.standard_normal((64, 20))
    x[:, [3, 40]] = 0
    live = [index for index in range(64) if index not in (3, 40)]
    grid = fit(weight, 4, 0, "symmetric")
    codes = gptq.round_weight(weight, grid, gptq.factor(x.T @ x, 0.01))
    alone = x[:, live].astype(np.float64)
    # The mean of the diagonal, which damping is a share of, counts dead inputs too.
    damping = 0.01 * len(live) / 64
    rest = gptq.round_weight(weight[live], grid, gptq.factor(alone.T @ alone, damping))
    assert np.array_equal(codes[live], rest)
    assert np.array_equal(codes[[3, 40]], grid.codes(weight)[[3, 40]])


@pytest.mark.parametrize("tokens", [0, 1, 8, 64, 128, 512, 4096])
@pytest.mark.parametrize("rank", [16, 128])
def test_codes_are_never_worse_than_rounding_on_held_out_inputs(tokens: int, rank: int) -> None:
    rng = np.random.default_rng(tokens + rank)
    mixing, weight = rng.standard_normal((rank, 128)), rng.standard_normal((128, 48)).astype(np.float32)
    x = (rng.standard_normal((tokens, rank)) @ mixing).astype(np.float32)
    seen, held = x[: tokens * 3 // 4], x[tokens * 3 // 4 :]
    found = choose(weight, Inputs(len(seen), seen.T @ seen, None, held, held @ weight), Recipe(4, 32))
    rounded = choose(weight, Inputs(0), Recipe(4, 32, gptq=False))
    fresh = (np.random.default_rng(1).standard_normal((2000, rank)) @ mixing).astype(np.float32)

    def loss(one: object) -> float:
        return float(((fresh @ (one.grid.values(one.codes_IO) - weight)) ** 2).sum())  # type: ignore[attr-defined]

    assert loss(found) <= 1.02 * loss(rounded)
    if tokens < 64:
        assert found.how == "rounded (few tokens)"
        assert np.array_equal(found.codes_IO, rounded.codes_IO)
    else:
        assert found.error <= found.rounded_error
    if tokens == 4096:
        assert found.how == "gptq" and loss(found) < 0.6 * loss(rounded)


def test_the_damping_is_that_of_the_recipe_or_by_the_tokens() -> None:
    rng = np.random.default_rng(4)
    mixing, weight = rng.standard_normal((16, 64)), rng.standard_normal((64, 16)).astype(np.float32)
    seen, held = ((rng.standard_normal((rows, 16)) @ mixing).astype(np.float32) for rows in (3000, 200))
    shown = Inputs(len(seen), seen.T @ seen, None, held, held @ weight)
    for damping, added in ((None, gptq.damping_for(64, len(seen))), (0.03, 0.03)):
        found = choose(weight, shown, Recipe(4, 32, damping=damping))
        assert found.how == "gptq" and found.damping == pytest.approx(added)


def test_more_damping_is_for_fewer_tokens() -> None:
    assert gptq.damping_for(512, 65536) == 0.01
    assert gptq.damping_for(512, 512) == pytest.approx(0.15)
    assert gptq.damping_for(512, 0) == pytest.approx(0.15 * 512)
