"""Which rank a process is."""

import pytest

from llmctl.errors import ConfigError
from llmctl.parallel.rank import Rank, from_environment


@pytest.mark.parametrize("environ", [{}, {"PADDLE_TRAINERS_NUM": "1", "PADDLE_TRAINER_ID": "0"}])
def test_a_process_without_others_trains_alone(environ):
    assert from_environment(environ) is None


def test_a_rank_is_what_paddles_variables_say():
    assert from_environment({"PADDLE_TRAINERS_NUM": "4", "PADDLE_TRAINER_ID": "3"}) == Rank(3, 4)


@pytest.mark.parametrize("number", [None, "4", "-1", "x"])
def test_variables_that_fit_no_rank_are_named(number):
    environ = {"PADDLE_TRAINERS_NUM": "4", **({} if number is None else {"PADDLE_TRAINER_ID": number})}
    with pytest.raises(ConfigError, match="PADDLE_TRAINERS_NUM='4'"):
        from_environment(environ)
