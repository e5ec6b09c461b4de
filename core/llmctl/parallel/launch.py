"""The launcher: starts the ranks of a training command, follows them, and says why they failed. Nothing here imports paddle."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from llmctl.errors import ConfigError
from llmctl.io.atomic import explain_os_errors
from llmctl.io.nameless import nameless_file
from llmctl.parallel import rank as ranks
from llmctl.parallel.machines import rendezvous
from llmctl.parallel.machines.nodes import Nodes, check_interface, own_address
from llmctl.runtime import process
from llmctl.runtime.endings import NO_READER, USER_ERROR
from llmctl.runtime.signals import SIGNALS, handled

POLL, GRACE, ANSWER = 0.05, 2.0, 0.5
"""Seconds between two looks at the ranks, from the failure of one until the others are killed, and for these to say where they are."""

SAVING = 300.0
"""As ``GRACE``, after a signal: rank 0 may be saving."""

TAIL = 20
"""Lines of a rank's output that are shown where it has no log."""

ALONE = Nodes()
"""This machine alone."""

NO_FACTS: Mapping[str, str] = {}

INTERRUPTED = frozenset(128 + number for number in SIGNALS)
"""Exit codes of a run that a signal ended, perhaps on another machine: it is saved."""

FINAL = frozenset({0, USER_ERROR, NO_READER, *INTERRUPTED})
"""Exit codes after which ranks are not started again."""


@dataclass(frozen=True)
class Devices:
    """The processes of this machine.

    Attributes:
        count: How many.
        gpus: The GPU of each; empty = processes 0, 1, ... take GPUs 0, 1, ..., or the CPU where there are none.
    """

    count: int
    gpus: Sequence[int] = field(default=())


def parse_devices(text: str) -> Devices:
    """``4`` processes, or one for each GPU of ``0,2,3``.

    Raises:
        ConfigError: It is neither.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts) or (len(parts) == 1 and int(parts[0]) < 1):
        raise ConfigError(f"--devices {text}: give a number of processes such as 4, or the numbers of GPUs such as 0,1")
    numbers = [int(part) for part in parts]
    if len(parts) == 1:
        return Devices(numbers[0])
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"--devices {text} names a GPU twice")
    return Devices(len(numbers), numbers)


def run(
    command: Sequence[str],
    devices: Devices,
    logs: Path | None = None,
    restarts: int = 0,
    nodes: Nodes = ALONE,
    facts: Mapping[str, str] = NO_FACTS,
    text: str = "",
    again: Callable[[], Sequence[str]] = list,
) -> int:
    """Runs a command of llmctl as ranks, rank 0 on this terminal and the others with logs; returns the exit code.

    Args:
        command: Arguments of llmctl.
        devices: The processes.
        logs: Folder of the files ``rank-N.log``; None = the end of a rank's output is shown if it fails.
        restarts: How often all ranks are started again, from the newest checkpoint, after one failed.
        nodes: The machines; each has a launcher.
        facts: What must be the same on all machines, by name.
        text: What each rank reads from its standard input.
        again: Gives the arguments that are added when ranks are started again.

    Raises:
        ConfigError: The machines do not meet, or differ, or this one has no such network interface.
    """
    check_interface(nodes.interface)
    facts = {**facts, "--max-restarts": str(restarts)}
    for done in range(restarts + 1):
        with Launch([*command, *(again() if done else ())], devices, logs, done, nodes, facts, text) as launch:
            code = launch.follow()
            if code in FINAL or launch.signalled or done == restarts:
                return code
        print(f"restart {done + 1} of {restarts}", file=sys.stderr, flush=True)
    raise AssertionError("the last round returns")


class Launch(contextlib.AbstractContextManager["Launch"]):
    """The ranks of one start; none is left when the block ends.

    Args:
        command: Arguments of llmctl.
        devices: The processes.
        logs: Folder of logs, or None.
        restarts: How often the ranks have been started again.
        nodes: The machines.
        facts: What must be the same on all machines, by name.
        text: What each rank reads from its standard input.

    Raises:
        ConfigError: The machines cannot meet, or differ.

    Attributes:
        signalled: The signal that this process got; 0 = none.
    """

    PROGRAM = (sys.executable, "-m", "llmctl")

    def __init__(
        self,
        command: Sequence[str],
        devices: Devices,
        logs: Path | None,
        restarts: int,
        nodes: Nodes = ALONE,
        facts: Mapping[str, str] = NO_FACTS,
        text: str = "",
    ) -> None:
        self._command = [*self.PROGRAM, *command]
        self._devices, self._logs, self._restarts, self._nodes = devices, logs, restarts, nodes
        self._facts = {**facts, "--nnodes": str(nodes.count), "--devices": str(devices.count)}
        self._first, self._text = nodes.number * devices.count, text.encode()
        self.signalled, self._killed, self._told = 0, False, 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._outputs: list[IO[bytes] | None] = []
        self._reports: list[IO[bytes]] = []
        self._ended: dict[int, int] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Launch:
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            stack.enter_context(handled(self._signal))
            try:
                if self._nodes.count > 1:
                    rendezvous.meet(self._nodes, self._facts, lambda: bool(self.signalled))
            except rendezvous.Stopped:
                self._stack = stack.pop_all()
                return self
            ports = stack.enter_context(held_ports(self._devices.count + 1))
            environments = rank_environments(self._devices, os.environ, ports, self._nodes)
            numbers = range(self._first, self._first + self._devices.count)
            self._outputs = [stack.enter_context(self._output(n)) if n else None for n in numbers]
            self._reports = [stack.enter_context(nameless_file()) for _ in numbers]
            for environment, output, report in zip(environments, self._outputs, self._reports, strict=True):
                if not self.signalled:
                    self._processes.append(self._start(environment, output, report))
            # One that was being started when a signal came has not got it.
            self._pass_on()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _output(self, number: int) -> IO[bytes]:
        """Where a rank prints."""
        if self._logs is None:
            return nameless_file()
        with explain_os_errors(self._logs):
            self._logs.mkdir(parents=True, exist_ok=True)
            return self._log(number).open("ab")

    def _start(
        self, environment: Mapping[str, str], output: IO[bytes] | None, report: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        own = {
            ranks.LAUNCHER: str(os.getpid()),
            ranks.REPORT: str(report.fileno()),
            ranks.RESTARTS: str(self._restarts),
        }
        with nameless_file(self._text) as text:
            return subprocess.Popen(
                self._command,
                env={**environment, **own},
                stdin=text,
                stdout=output,
                stderr=output,
                pass_fds=(report.fileno(),),
                # Ctrl-C reaches the launcher only, which hands it on once.
                start_new_session=True,
            )

    def follow(self) -> int:
        """Waits until all ranks have ended; once one failed, the others have ``GRACE`` seconds. Returns the exit code."""
        failed_at = 0.0
        while len(self._ended) < len(self._processes):
            if self._killed:
                self._kill()
            for number, one in enumerate(self._processes):
                if self._first + number not in self._ended and one.poll() is not None:
                    self._ended[self._first + number] = one.returncode
            if not failed_at and any(map(self._fails, self._ended.values())):
                failed_at = time.monotonic()
            if failed_at and time.monotonic() - failed_at > (SAVING if self.signalled else GRACE):
                break
            time.sleep(POLL)
        hanging = {self._first + at: one for at, one in enumerate(self._processes) if one.poll() is None}
        reports = ranks.read_reports(self._reports)
        killed = [(number, -code) for number, code in self._ended.items() if code < 0 and self._fails(code)]
        puzzling = bool(hanging and reports and reports[0].cause == ranks.LOST and not killed and not self.signalled)
        if puzzling:
            for one in hanging.values():
                # One that is stopped would not answer.
                one.send_signal(signal.SIGCONT)
                one.send_signal(ranks.WHERE)
            time.sleep(ANSWER)
        self._end()
        return self._explain(reports, killed, list(hanging) if puzzling else [])

    def _fails(self, code: int) -> bool:
        """Whether an exit code, negative for a signal, is that of a rank that failed: that did not end as it was asked to."""
        asked = self._killed or (self.signalled and (code == -self.signalled or code in INTERRUPTED))
        return bool(code and not asked)

    def _explain(
        self, reports: Sequence[ranks.Report], killed: Sequence[tuple[int, int]], hanging: Sequence[int]
    ) -> int:
        """Says which rank failed first and why; returns the exit code.

        Args:
            reports: Of ranks that failed, the one to show first.
            killed: Ranks that a signal ended, and which.
            hanging: The ranks that neither failed nor ended, where the others do not know why they failed.
        """
        stopped = 128 + self.signalled if self.signalled else 0
        if self._killed or not any(self._ended.values()):
            return stopped if self._killed or not self._processes else 0
        # Nothing that fails sends SIGKILL: it came from outside, and what the others report followed from it.
        if reports and reports[0].cause == ranks.OWN and not any(ended_by == signal.SIGKILL for _, ended_by in killed):
            return self._say(reports[0])
        if killed:
            number, ended_by = killed[0]
            self._print(f"error: rank {number} was ended by signal {_name(ended_by)}", number)
            return 128 + ended_by
        if self.signalled:
            return next((code for code in self._ended.values() if code in INTERRUPTED), stopped)
        if hanging:
            for number in hanging:
                self._print(f"error: rank {number} hangs", number, ", and ends with the code that it is at")
            return reports[0].code
        if reports:
            return self._say(reports[0])
        number, code = next((number, code) for number, code in self._ended.items() if code)
        if code not in INTERRUPTED:
            self._print(f"error: rank {number} ended with exit code {code}", number)
        return code

    def _say(self, report: ranks.Report) -> int:
        """Prints why a rank failed; returns its exit code."""
        if report.text:
            named = report.rank and report.code != USER_ERROR and report.cause != ranks.KNOWN
            first = f"rank {report.rank} failed first{self._where(report.rank)}:\n" if named else ""
            print(f"{first}{report.text}", file=sys.stderr, flush=True)
        return report.code

    def _print(self, text: str, number: int, more: str = "") -> None:
        """Prints something on a rank, where its output is, and more on that."""
        output = self._outputs[number - self._first]
        if self._logs is None and output:
            output.seek(0)
            lines = output.read().decode(errors="replace").splitlines()[-TAIL:]
            text = "\n".join([*lines, text])
        print(f"{text}{self._where(number, more)}", file=sys.stderr, flush=True)

    def _where(self, number: int, more: str = "") -> str:
        return f" (its output is in {self._log(number)}{more})" if number and self._logs else ""

    def _log(self, number: int) -> Path:
        assert self._logs
        return self._logs / f"rank-{number}.log"

    def _signal(self, number: int, frame: Any) -> None:
        """The first signal goes to all ranks, which finish their step and save; the second one kills them."""
        if self.signalled:
            self._killed = True
            self._kill()
        else:
            self.signalled = number
            self._pass_on()

    def _pass_on(self) -> None:
        """Hands the signal that came, if one did, to the ranks that have not got it."""
        while self.signalled and self._told < len(self._processes):
            one, self._told = self._processes[self._told], self._told + 1
            if one.poll() is None:
                one.send_signal(self.signalled)

    def _kill(self) -> None:
        for one in self._processes:
            if one.poll() is None:
                one.kill()

    def _end(self) -> None:
        self._kill()
        for one in self._processes:
            one.wait()


def rank_environments(
    devices: Devices, environ: Mapping[str, str], ports: Sequence[int], nodes: Nodes = ALONE
) -> list[dict[str, str]]:
    """The environment of each rank of this machine.

    Args:
        devices: The processes of each machine.
        environ: The environment of this process.
        ports: A free port for each process and one for rank 0.
        nodes: The machines.
    """
    host, first = own_address(nodes), nodes.number * devices.count
    master = f"{nodes.host}:{nodes.port}" if nodes.host else f"{host}:{ports[devices.count]}"
    places = [f"{host}:{port}" for port in ports[: devices.count]]
    # Paddle asks for the addresses of all, and uses that of rank 0 only.
    everywhere = [master] * (nodes.count * devices.count)
    everywhere[first : first + devices.count] = places
    threads = max(1, process.available_cores() // devices.count)
    gpus = list(devices.gpus) or list(range(devices.count))
    shared = {
        ranks.SIZE: str(len(everywhere)),
        "PADDLE_TRAINER_ENDPOINTS": ",".join(everywhere),
        "PADDLE_MASTER": master,
        **({ranks.NODES: str(nodes.count)} if nodes.count > 1 else {}),
        **nodes.interface_variables,
        **({} if "LLMCTL_THREADS" in environ or "OMP_NUM_THREADS" in environ else {"LLMCTL_THREADS": str(threads)}),
    }
    return [
        {
            **environ,
            **shared,
            ranks.NUMBER: str(first + local),
            "PADDLE_CURRENT_ENDPOINT": place,
            "PADDLE_LOCAL_RANK": str(local),
            "FLAGS_selected_gpus": str(gpu),
        }
        for local, (place, gpu) in enumerate(zip(places, gpus, strict=True))
    ]


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    with held_ports(count) as ports:
        return ports


@contextlib.contextmanager
def held_ports(count: int) -> Iterator[list[int]]:
    """Ports of this machine that the system gives to nobody else during the block; who is told one can listen there."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            # Paddle's stores set it too: they may take a port where nobody listens.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", 0))
        yield [one.getsockname()[1] for one in sockets]


def _name(number: int) -> str:
    """A signal, for people."""
    names = {one.value: f" ({one.name})" for one in signal.Signals}
    why = ", as the system sends it where memory runs out" if number == signal.SIGKILL else ""
    return f"{number}{names.get(number, '')}{why}"
