"""The launcher, with ranks that are small programs."""

import os
import signal
import socket
import sys
import tempfile
import threading
import time

import pytest

from llmctl.errors import ConfigError
from llmctl.parallel import launch
from llmctl.parallel.launch import Devices, Launch, held_ports, parse_devices, rank_environments
from llmctl.parallel.machines.nodes import Nodes

REPORT = """
import os, time
from llmctl.parallel.rank import *
def fail(error):
    with reporting(from_environment()):
        raise error
number = int(os.environ[NUMBER])
"""


def follow(tmp_path, monkeypatch, program, count=2, restarts=0, grace=0.5, **options):
    """The launcher's exit code with this program in place of llmctl."""
    monkeypatch.setattr(launch, "GRACE", grace)
    monkeypatch.setattr(Launch, "PROGRAM", (sys.executable, "-c", program))
    return launch.run([], Devices(count), tmp_path / "logs", restarts, **options)


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
    reason = "PeerLost('rank 3 failed: output.dir is not shared', 2, KNOWN)"
    program = REPORT + f"fail({reason} if number else PeerLost('another rank did not come to a sum'))"
    assert follow(tmp_path, monkeypatch, program, restarts=2, grace=20) == 2
    assert capfd.readouterr().err == "error: rank 3 failed: output.dir is not shared\n"


def test_a_closed_output_is_no_error_and_is_not_tried_again(tmp_path, monkeypatch, capfd):
    assert follow(tmp_path, monkeypatch, REPORT + "fail(BrokenPipeError())", restarts=2, grace=20) == 141
    assert capfd.readouterr().err == ""


def test_a_message_with_a_name_that_is_no_text_is_shown(tmp_path, monkeypatch, capfd):
    assert follow(tmp_path, monkeypatch, REPORT + "fail(ValueError('data-\\udce9'))") == 1
    assert "ValueError: data-?" in capfd.readouterr().err


def test_where_the_others_are_is_not_printed_if_the_reason_is_known(tmp_path, monkeypatch, capfd):
    program = REPORT + (
        "import faulthandler\nfaulthandler.register(WHERE)\nfail(ValueError('boom')) if number else time.sleep(60)"
    )
    assert follow(tmp_path, monkeypatch, program) == 1
    assert capfd.readouterr().err.count('File "<string>"') == 1


def test_each_rank_reads_the_text_and_nothing_is_written_but_the_logs(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Launch, "PROGRAM", (sys.executable, "-c", "print(open('/dev/stdin').read())"))
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
        assert launch.run([], Devices(2), tmp_path / "logs", text="train: ü") == 0
    assert capfd.readouterr().out == "train: ü\n"
    assert (tmp_path / "logs" / "rank-1.log").read_text() == "train: ü\n"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["rank-1.log"]


def test_without_logs_the_output_of_a_rank_that_fails_is_shown(monkeypatch, capfd):
    monkeypatch.setattr(launch, "GRACE", 0.5)
    program = REPORT + "print('before the end', flush=True)\nos.kill(os.getpid(), 15) if number else time.sleep(60)"
    monkeypatch.setattr(Launch, "PROGRAM", (sys.executable, "-c", program))
    assert launch.run([], Devices(2)) == 143
    assert capfd.readouterr().err == "before the end\nerror: rank 1 was ended by signal 15 (SIGTERM)\n"


def test_a_rank_that_is_killed_is_named_with_its_signal(tmp_path, monkeypatch, capfd):
    program = REPORT + "os.kill(os.getpid(), 9) if number else time.sleep(60)"
    assert follow(tmp_path, monkeypatch, program) == 137
    assert "rank 1 was ended by signal 9 (SIGKILL)" in capfd.readouterr().err


def test_a_signal_without_a_name_is_told_by_its_number(tmp_path, monkeypatch, capfd):
    number = signal.SIGRTMIN + 1
    program = REPORT + f"os.kill(os.getpid(), {number}) if number else time.sleep(60)"
    assert follow(tmp_path, monkeypatch, program) == 128 + number
    assert f"rank 1 was ended by signal {number} (its output" in capfd.readouterr().err


def test_a_held_port_is_given_to_nobody_but_who_knows_it():
    with (
        held_ports(2) as (port, other),
        socket.socket() as stranger,
        socket.socket() as store,
        socket.socket() as guest,
    ):
        assert port != other
        with pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port))
        store.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        store.bind(("127.0.0.1", port))
        store.listen()
        guest.connect(("127.0.0.1", port))


def test_what_other_ranks_report_does_not_hide_one_that_was_killed(tmp_path, monkeypatch, capfd):
    program = REPORT + "os.kill(os.getpid(), 9) if number else fail(RuntimeError('connection reset'))"
    assert follow(tmp_path, monkeypatch, program, grace=60) == 137
    said = capfd.readouterr().err
    assert "rank 1 was ended by signal 9 (SIGKILL), as the system sends it" in said and "Traceback" not in said


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
    assert "error: rank 1 hangs (its output is in " in said
    assert said.endswith("rank-1.log, and ends with the code that it is at)\n")
    assert "stuck_here" in (tmp_path / "logs" / "rank-1.log").read_text()


def test_after_a_failure_all_ranks_start_again_with_further_arguments(tmp_path, monkeypatch, capfd):
    program = REPORT + (
        f"import sys; open({str(tmp_path)!r} + f'/{{number}}-{{os.environ[RESTARTS]}}', 'w').write(' '.join(sys.argv[1:]))\n"
        "fail(ValueError('boom')) if os.environ[RESTARTS] == '0' else None"
    )
    assert follow(tmp_path, monkeypatch, program, restarts=2, grace=20, again=lambda: ["--resume", "now"]) == 0
    assert "restart 1 of 2" in capfd.readouterr().err
    assert (tmp_path / "1-0").read_text() == ""
    assert (tmp_path / "1-1").read_text() == "--resume now"
    assert not (tmp_path / "0-2").exists()


def signalled(tmp_path, monkeypatch, number, answer, times=1):
    """The launcher's exit code after a signal, to which ranks answer with a statement; later ones come when both did."""
    program = (
        REPORT
        + f"""
import signal, sys
def say(what):
    open({str(tmp_path)!r} + f'/{{what}}-{{number}}', 'w').close()
def answer(*_):
    say('got')
    {answer}
signal.signal({int(number)}, answer)
say('ready')
time.sleep(60)
"""
    )

    def press():
        for event in ("ready", "got")[:times]:
            while not all((tmp_path / f"{event}-{n}").exists() for n in (0, 1)):
                time.sleep(0.02)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=press, daemon=True)
    thread.start()
    code = follow(tmp_path, monkeypatch, program, restarts=1)
    thread.join()
    return code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_goes_to_all_ranks_whose_exit_code_is_returned(number, tmp_path, monkeypatch):
    assert signalled(tmp_path, monkeypatch, number, "sys.exit(129)") == 129


@pytest.mark.parametrize("answer", ["sys.exit(1)", "os.kill(os.getpid(), 15)"])
def test_ranks_that_a_signal_ends_before_they_can_save_end_the_command_with_its_code(
    answer, tmp_path, monkeypatch, capfd
):
    restore = f"signal.signal(15, signal.SIG_DFL); {answer}"
    assert signalled(tmp_path, monkeypatch, signal.SIGTERM, restore) == 143
    assert capfd.readouterr().err == ""


def test_a_second_signal_kills_ranks_that_do_not_end(tmp_path, monkeypatch, capfd):
    began = time.monotonic()
    assert signalled(tmp_path, monkeypatch, signal.SIGINT, "pass", times=2) == 130
    assert time.monotonic() - began < 30 and capfd.readouterr().err == ""


def test_after_a_signal_a_rank_that_is_killed_does_not_leave_the_others_waiting(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(launch, "SAVING", 0.5)
    assert signalled(tmp_path, monkeypatch, signal.SIGTERM, "os.kill(os.getpid(), 9) if number else None") == 137
    assert "rank 1 was ended by signal 9 (SIGKILL)" in capfd.readouterr().err


def test_a_signal_while_ranks_are_started_reaches_those_that_were_and_starts_no_more(tmp_path, monkeypatch):
    start, started = Launch._start, []

    def signalled(*args):
        made = start(*args)
        os.kill(os.getpid(), signal.SIGTERM)
        started.append(made)
        return made

    monkeypatch.setattr(Launch, "_start", signalled)
    assert follow(tmp_path, monkeypatch, "import time; time.sleep(60)", count=3) == 143
    assert [one.returncode for one in started] == [-signal.SIGTERM]


def test_the_environment_is_in_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMCTL_TEST_SECRET", "s3cret-value")
    assert follow(tmp_path, monkeypatch, REPORT + "print('hello')") == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["rank-1.log"]
    assert not any(b"s3cret-value" in path.read_bytes() for path in files)
