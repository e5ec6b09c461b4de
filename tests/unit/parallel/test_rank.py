"""Which rank a process is."""

import sys

import pytest

from llmctl.errors import ConfigError
from llmctl.parallel import rank
from llmctl.parallel.rank import LAUNCHER, MISTAKE, PeerLost, Rank, from_environment, other_ranks


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


@pytest.mark.parametrize(("reason", "code"), [("rank 1 failed: killed", 1), (f"rank 1 failed: no data{MISTAKE}", 2)])
def test_in_another_launchers_process_what_comes_from_other_ranks_is_one_line(reason, code, monkeypatch, capsys):
    monkeypatch.delenv(LAUNCHER, raising=False)
    monkeypatch.setattr(rank, "leave", sys.exit)
    with pytest.raises(SystemExit) as end, rank.reporting(Rank(0, 2)):
        raise PeerLost(reason)
    assert end.value.code == code and capsys.readouterr().err == f"error: {reason}\n"


def test_in_another_launchers_process_the_others_are_told_of_a_mistake(monkeypatch):
    told = []
    monkeypatch.delenv(LAUNCHER, raising=False)
    monkeypatch.setattr(rank, "ON_FAILURE", [told.append])
    for error, text in ((ConfigError("no data"), f"no data{MISTAKE}"), (RuntimeError("boom"), "RuntimeError: boom")):
        with pytest.raises(type(error)), rank.reporting(Rank(0, 2)):
            raise error
        assert told.pop() == text
