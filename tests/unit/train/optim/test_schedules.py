"""Learning rates against the formulas, written out here for each update."""

import math

import pytest

from llmctl.config.common import warmup_steps
from llmctl.train.optim.schedules import schedule


def test_linear_falls_by_equal_parts_to_one_part_above_its_end():
    rates = [schedule("linear", 1.0, 10)(step) for step in range(1, 11)]
    assert rates == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_cosine_is_half_a_wave_between_the_peak_and_the_minimum():
    rate = schedule("cosine", 2.0, 8, min_ratio=0.25)
    assert rate(1) == 2.0
    assert rate(5) == pytest.approx(2.0 * (0.25 + 0.75 / 2))
    assert rate(8) == pytest.approx(2.0 * (0.25 + 0.75 * (1 + math.cos(math.pi * 7 / 8)) / 2))


def test_constant_stays_at_the_peak_whatever_the_minimum():
    assert {schedule("constant", 3e-4, 5, min_ratio=0.1)(step) for step in range(1, 6)} == {3e-4}


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_warmup_rises_by_equal_parts_and_meets_the_course_at_the_peak(name):
    rate = schedule(name, 0.4, 20, warmup=4)
    assert [rate(step) for step in range(1, 5)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rate(5) == pytest.approx(0.4)
    assert all(rate(step) > 0 for step in range(1, 21))


def test_a_warmup_longer_than_training_never_reaches_the_peak():
    rate = schedule("linear", 1.0, 3, warmup=10)
    assert [rate(step) for step in (1, 2, 3)] == pytest.approx([0.1, 0.2, 0.3])


def test_after_the_last_update_the_rate_stays_at_the_minimum():
    assert schedule("linear", 1.0, 10, min_ratio=0.2)(50) == pytest.approx(0.2)


def test_warmup_by_steps_goes_before_the_ratio_which_is_rounded_up():
    assert warmup_steps(100, 7, 0.5) == 7
    assert warmup_steps(101, 0, 0.1) == 11
    assert warmup_steps(100, 0, 0.0) == 0


def test_an_unknown_schedule_names_the_known_ones():
    with pytest.raises(ValueError, match="linear, cosine, constant"):
        schedule("polynomial", 1.0, 10)
