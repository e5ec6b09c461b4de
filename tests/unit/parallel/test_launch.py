"""The launcher, with ranks that are small programs."""

import os
import signal
import sys
import threading
import time

import pytest

from llmctl.errors import ConfigError
from llmctl.parallel import launch
from llmctl.parallel.launch import Devices, Launch, parse_devices, rank_environments
from llmctl.parallel.machines.nodes import Nodes

REPORT = """
import os, time
from llmctl.parallel.rank import *
def fail(error):
    with reporting(from_environment()):
        raise error
number = int(os.environ[NUMBER])
"""


def follow(tmp_path, monkeypatch, program, count=2, restarts=0, grace=0.5):
    """The launcher's exit code with this program in place of llmctl."""
    monkeypatch.setattr(launch, "GRACE", grace)
    monkeypatch.setattr(Launch, "PROGRAM", (sys.executable, "-c", program))
    return launch.run([], Devices(count), tmp_path / "logs", restarts)


@pytest.mark.parametrize(
    ("text", "count", "gpus"), [("4", 4, ()), ("0,2", 2, (0, 2)), (" 3 , 1 ", 2, (3, 1)), ("1", 1, ())]
)
def test_devices_are_a_number_or_gpus(text, count, gpus):
    found = parse_devices(text)
    assert (found.count, tuple(found.gpus)) == (count, gpus)


@pytest.mark.parametrize("text", ["0", "", "two", "-1", "1,1", "1,", "1.5"])
def test_other_devices_are_refused(text):
    with pytest.raises(ConfigError, match="--devices"):
        parse_devices(text)


def test_each_rank_has_its_number_its_gpu_and_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(launch.process, "available_cores", lambda: 8)
    first, second = rank_environments(Devices(2, (3, 1)), {"A": "b"}, [1, 2, 3])
    assert (first["PADDLE_TRAINER_ID"], second["PADDLE_TRAINER_ID"]) == ("0", "1")
    assert (first["FLAGS_selected_gpus"], second["FLAGS_selected_gpus"]) == ("3", "1")
    assert first["LLMCTL_THREADS"] == "4" and first["A"] == "b"
    assert first["PADDLE_MASTER"] == second["PADDLE_MASTER"] == "127.0.0.1:3"
    assert "LLMCTL_THREADS" not in rank_environments(Devices(2), {"OMP_NUM_THREADS": "1"}, [1, 2, 3])[0]


def test_on_several_machines_ranks_are_numbered_through_and_meet_at_machine_0():
    nodes = Nodes(3, 1, "127.0.0.1", 6170, "lo")
    first, second = rank_environments(Devices(2), {}, [1, 2, 3], nodes)
    assert [one["PADDLE_TRAINER_ID"] for one in (first, second)] == ["2", "3"]
    assert [one["PADDLE_LOCAL_RANK"] for one in (first, second)] == ["0", "1"]
    assert first["PADDLE_TRAINERS_NUM"] == "6" and first["PADDLE_MASTER"] == "127.0.0.1:6170"
    assert len(first["PADDLE_TRAINER_ENDPOINTS"].split(",")) == 6 and first["GLOO_SOCKET_IFNAME"] == "lo"
    assert first["LLMCTL_NODES"] == "3" and "LLMCTL_NODES" not in rank_environments(Devices(2), {}, [1, 2, 3])[0]


def test_the_rank_that_failed_first_is_shown_once_and_the_others_are_ended(tmp_path, monkeypatch, capfd):
    program = REPORT + "time.sleep(60) if number == 2 else fail(ValueError('boom') if number else PeerLost('alone'))"
    started = time.monotonic()
    assert follow(tmp_path, monkeypatch, program, 3) == 1
    assert time.monotonic() - started < 30
    shown = capfd.readouterr().err
    assert shown.count("Traceback") == 1 and shown.rstrip().endswith("ValueError: boom")
    assert "rank 1 failed first" in shown and "rank-1.log" in shown and "alone" not in shown


def test_an_error_of_the_user_is_one_line_and_is_not_tried_again(tmp_path, monkeypatch, capfd):
    program = REPORT + "from llmctl.errors import DataError\nfail(DataError('line 3 is empty'))"
    assert follow(tmp_path, monkeypatch, program, restarts=3) == 2
    assert capfd.readouterr().err == "error: line 3 is empty\n"


def test_a_mistake_on_another_machine_is_not_tried_again(tmp_path, monkeypatch, capfd):
    program = REPORT + "fail(PeerLost('rank 3 failed: output.dir is not shared' + MISTAKE))"
    assert follow(tmp_path, monkeypatch, program, restarts=2, grace=20) == 2
    said = "error: rank 3 failed: output.dir is not shared; starting again would not help\n"
    assert capfd.readouterr().err == said


def test_a_rank_tells_the_others_that_it_failed_by_a_mistake(tmp_path, monkeypatch, capfd):
    program = REPORT + "ON_FAILURE.append(print)\nfrom llmctl.errors import ConfigError\nfail(ConfigError('no data'))"
    assert follow(tmp_path, monkeypatch, program) == 2
    assert capfd.readouterr().out == "no data; starting again would not help\n"


def test_a_rank_that_is_killed_is_named_with_its_signal(tmp_path, monkeypatch, capfd):
    program = REPORT + "os.kill(os.getpid(), 9) if number else time.sleep(60)"
    assert follow(tmp_path, monkeypatch, program) == 137
    assert "rank 1 was ended by signal 9 (SIGKILL)" in capfd.readouterr().err


def test_what_other_ranks_report_does_not_hide_one_that_was_killed(tmp_path, monkeypatch, capfd):
    program = REPORT + "os.kill(os.getpid(), 9) if number else fail(RuntimeError('connection reset'))"
    assert follow(tmp_path, monkeypatch, program, grace=60) == 137
    said = capfd.readouterr().err
    assert "rank 1 was ended by signal 9 (SIGKILL)" in said and "Traceback" not in said


def test_a_rank_that_hangs_is_named_and_its_log_says_where(tmp_path, monkeypatch, capfd):
    program = (
        REPORT
        + """
def stuck_here():
    time.sleep(60)
if number:
    with reporting(from_environment()):
        stuck_here()
time.sleep(0.5)
fail(PeerLost('timeout'))
"""
    )
    assert follow(tmp_path, monkeypatch, program) == 1
    said = capfd.readouterr().err
    assert "error: rank 1 (its output is in " in said and "rank-1.log) hangs; its output ends with" in said
    assert "stuck_here" in (tmp_path / "logs" / "rank-1.log").read_text()


def test_after_a_failure_all_ranks_start_again_and_are_told_to_resume(tmp_path, monkeypatch, capfd):
    program = REPORT + (
        f"import sys; open({str(tmp_path)!r} + f'/{{number}}-{{os.environ[RESTARTS]}}', 'w').write(' '.join(sys.argv[1:]))\n"
        "fail(ValueError('boom')) if os.environ[RESTARTS] == '0' else None"
    )
    assert follow(tmp_path, monkeypatch, program, restarts=2, grace=20) == 0
    assert "restart 1 of 2" in capfd.readouterr().err
    assert (tmp_path / "1-0").read_text() == ""
    assert (tmp_path / "1-1").read_text() == "--set output.resume=true --set output.overwrite=false"
    assert not (tmp_path / "0-2").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_goes_to_all_ranks_whose_exit_code_is_returned(number, tmp_path, monkeypatch):
    program = REPORT + (
        "import signal, sys\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(77))\n"
        f"open({str(tmp_path)!r} + f'/ready-{{number}}', 'w').close()\n"
        "time.sleep(60)"
    )

    def press():
        while not all((tmp_path / f"ready-{n}").exists() for n in (0, 1)):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=press, daemon=True)
    thread.start()
    assert follow(tmp_path, monkeypatch, program) == 77
    thread.join()


def test_the_environment_is_in_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMCTL_TEST_SECRET", "s3cret-value")
    assert follow(tmp_path, monkeypatch, REPORT + "print('hello')") == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["rank-1.log"]
    assert not any(b"s3cret-value" in path.read_bytes() for path in files)
