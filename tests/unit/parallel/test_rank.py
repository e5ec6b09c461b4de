"""Which rank a process is."""

import pytest

from llmctl.errors import ConfigError
from llmctl.parallel.rank import PeerLost, Rank, from_environment, other_ranks


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


def test_what_fails_while_others_are_waited_for_comes_from_them():
    with (
        pytest.raises(PeerLost, match="another rank did not come to a sum: Connection reset by peer"),
        other_ranks("a sum"),
    ):
        raise RuntimeError("pair.cc\nConnection reset by peer")


@pytest.mark.parametrize("error", [MemoryError("2 GB"), ValueError("shapes"), TypeError("types")])
def test_lack_of_memory_and_wrong_arguments_are_a_ranks_own(error):
    with pytest.raises(type(error), match=str(error)), other_ranks("a sum"):
        raise error
