"""Which rank a process is."""

import sys

import pytest

from llmctl.errors import ConfigError
from llmctl.parallel import rank
from llmctl.parallel.rank import KNOWN, LAUNCHER, PeerLost, Rank, from_environment, other_ranks


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


@pytest.fixture
def told(monkeypatch):
    """What a rank tells the others, in a process of another launcher; ``told.before`` is what another one told before."""

    class Told(list):
        before = None

        def __call__(self, *what):
            self.append(what)
            return self.before

    told = Told()
    monkeypatch.delenv(LAUNCHER, raising=False)
    monkeypatch.setattr(rank, "leave", sys.exit)
    monkeypatch.setattr(rank, "ON_FAILURE", [told])
    return told


def ends(error):
    """The exit code of a rank in which an error is raised."""
    with pytest.raises(SystemExit) as end, rank.reporting(Rank(0, 2)):
        raise error
    return end.value.code


@pytest.mark.parametrize("code", [1, 2, 143])
def test_in_another_launchers_process_what_comes_from_other_ranks_is_one_line(code, told, capfd):
    assert ends(PeerLost("rank 1 failed: no data", code, KNOWN)) == code
    assert capfd.readouterr().err == "error: rank 1 failed: no data\n"


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (ConfigError("no data"), "no data", 2),
        (MemoryError("9 TiB"), "MemoryError: 9 TiB", 2),
        (BrokenPipeError("closed"), "BrokenPipeError: closed", 141),
        (RuntimeError("boom"), "RuntimeError: boom", 1),
    ],
)
def test_the_others_are_told_why_a_rank_fails_and_its_exit_code(error, reason, code, told, capfd):
    with pytest.raises(type(error)), rank.reporting(Rank(0, 2)):
        raise error
    assert told == [(reason, code, True)]


@pytest.mark.parametrize("error", [PeerLost("another rank did not come to a sum"), ValueError("connection reset")])
def test_a_rank_that_was_cut_off_ends_as_the_one_that_told_why_it_failed(error, told, capfd):
    told.before = PeerLost("rank 1 failed: output.dir is not shared", 2, KNOWN)
    assert ends(error) == 2
    assert capfd.readouterr().err == "error: rank 1 failed: output.dir is not shared\n"


def test_a_mistake_that_a_rank_finds_itself_is_its_own(told):
    told.before = PeerLost("rank 1 failed: killed", 1, KNOWN)
    with pytest.raises(ConfigError), rank.reporting(Rank(0, 2)):
        raise ConfigError("no data")


def test_the_others_are_told_of_a_rank_that_a_signal_ends(told):
    rank.stop("interrupted by SIGTERM", 143)
    assert told == [("interrupted by SIGTERM", 143, True)]
