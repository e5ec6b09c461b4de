"""Losses of preference optimization against their formulas in numpy, values and gradients; what is reported of pairs."""

import numpy as np
import paddle
import pytest

from llmctl.nn.loss import token_log_probs
from llmctl.train.methods.dpo_loss import LOSSES, Ratios, sums

RNG = np.random.default_rng(11)
CHOSEN, REJECTED = RNG.normal(0, 4, 7), RNG.normal(0, 4, 7)
TOKENS = RNG.integers(1, 9, (2, 7)).astype(float)


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def numpy_loss(name, chosen, rejected, beta, smoothing=0.0):
    margin = beta * (chosen - rejected)
    if name == "sigmoid":
        return -(1 - smoothing) * log_sigmoid(margin) - smoothing * log_sigmoid(-margin)
    if name == "hinge":
        return np.maximum(0, 1 - margin)
    if name == "ipo":
        return (chosen / TOKENS[0] - rejected / TOKENS[1] - 1 / (2 * beta)) ** 2
    if name == "kto_pair":
        kl_chosen, kl_rejected = max(chosen.mean(), 0), max(rejected.mean(), 0)
        halves = [1 / (1 + np.exp(beta * x)) for x in (chosen - kl_rejected, kl_chosen - rejected)]
        return np.stack(halves).mean(0)
    if name == "sppo_hard":
        return (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2
    return -log_sigmoid(beta * chosen) - 0.5 * log_sigmoid(-beta * chosen) - 0.5 * log_sigmoid(-beta * rejected)


def ratios(chosen, rejected):
    return Ratios(chosen, rejected, *map(paddle.to_tensor, TOKENS))


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("shift", [0.0, 3.0])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradients_are_those_of_its_formula(name, beta, shift):
    values = CHOSEN + shift, REJECTED - shift
    tensors = [paddle.to_tensor(value, stop_gradient=False) for value in values]
    loss = LOSSES[name](ratios(*tensors), beta)
    np.testing.assert_allclose(loss.numpy(), numpy_loss(name, *values, beta), rtol=1e-12, atol=1e-14)
    grads = paddle.grad(loss.sum(), tensors)
    for side, index in np.ndindex(2, 7):
        ends = []
        for step in (1e-6, -1e-6):
            moved = [value.copy() for value in values]
            moved[side][index] += step
            ends.append(numpy_loss(name, *moved, beta).sum())
        assert float(grads[side][index]) == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-7)


def test_smoothing_weighs_the_other_order():
    found = LOSSES["sigmoid"](ratios(*map(paddle.to_tensor, (CHOSEN, REJECTED))), 0.3, 0.2)
    np.testing.assert_allclose(found.numpy(), numpy_loss("sigmoid", CHOSEN, REJECTED, 0.3, 0.2), rtol=1e-12)


def test_rewards_are_beta_times_the_ratios_and_are_summed_over_pairs():
    log_probs = [paddle.to_tensor(RNG.normal(-30, 4, 7)) for _ in range(2)]
    found = sums(*log_probs, ratios(*map(paddle.to_tensor, (CHOSEN, REJECTED))), 0.5)
    expected = {
        "rewards/chosen": 0.5 * CHOSEN.sum(),
        "rewards/rejected": 0.5 * REJECTED.sum(),
        "rewards/accuracies": (CHOSEN > REJECTED).sum(),
        "rewards/margins": 0.5 * (CHOSEN - REJECTED).sum(),
        "logps/chosen": log_probs[0].numpy().sum(),
        "logps/rejected": log_probs[1].numpy().sum(),
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)


def test_a_very_unlikely_token_keeps_its_log_probability():
    logits = np.zeros((2, 5))
    logits[0, 3] = 200.0
    found = token_log_probs(paddle.to_tensor(logits), paddle.to_tensor([1, 2]))
    np.testing.assert_allclose(found.numpy(), [-200.0, -np.log(5)], rtol=1e-12)
