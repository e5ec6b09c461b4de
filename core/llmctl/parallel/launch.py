"""The launcher: starts the ranks of a training command, follows them, and says why they failed. Nothing here imports paddle."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from llmctl.errors import ConfigError
from llmctl.io.atomic import explain_os_errors
from llmctl.parallel import rank as ranks
from llmctl.parallel.machines import rendezvous
from llmctl.parallel.machines.nodes import Nodes, check_interface, own_address
from llmctl.runtime import process
from llmctl.runtime.signals import SIGNALS, handled

POLL, GRACE, ANSWER = 0.05, 2.0, 0.5
"""Seconds between two looks at the ranks, from the failure of one until the others are killed, and for these to say where they are."""

ALONE = Nodes()
"""This machine alone."""

NO_FACTS: Mapping[str, str] = {}

INTERRUPTED = frozenset(128 + number for number in SIGNALS)
"""Exit codes of a run that a signal ended, perhaps on another machine: it is saved."""


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
    logs: Path,
    restarts: int = 0,
    nodes: Nodes = ALONE,
    facts: Mapping[str, str] = NO_FACTS,
) -> int:
    """Runs a command of llmctl as ranks, rank 0 on this terminal and the others with logs; returns the exit code.

    Args:
        command: Arguments of llmctl; those that continue a run are added when it is started again.
        devices: The processes.
        logs: Folder of the files ``rank-N.log``.
        restarts: How often all ranks are started again, from the newest checkpoint, after one failed.
        nodes: The machines; each has a launcher.
        facts: What must be the same on all machines, by name.

    Raises:
        ConfigError: The machines do not meet, or differ, or this one has no such network interface.
    """
    check_interface(nodes.interface)
    for done in range(restarts + 1):
        again = ["--set", "output.resume=true", "--set", "output.overwrite=false"] if done else []
        with Launch([*command, *again], devices, logs, done, nodes, facts) as launch:
            code = launch.follow()
            if code in (0, ranks.USER_ERROR) or code in INTERRUPTED or launch.signalled or done == restarts:
                return code
        print(f"restart {done + 1} of {restarts}", file=sys.stderr, flush=True)
    raise AssertionError("the last round returns")


class Launch(contextlib.AbstractContextManager["Launch"]):
    """The ranks of one start; none is left when the block ends.

    Args:
        command: Arguments of llmctl.
        devices: The processes.
        logs: Folder of logs.
        restarts: How often the ranks have been started again.
        nodes: The machines.
        facts: What must be the same on all machines, by name.

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
        logs: Path,
        restarts: int,
        nodes: Nodes = ALONE,
        facts: Mapping[str, str] = NO_FACTS,
    ) -> None:
        self._command = [*self.PROGRAM, *command]
        self._devices, self._logs, self._restarts, self._nodes = devices, logs, restarts, nodes
        self._facts = {**facts, "--nnodes": str(nodes.count), "--devices": str(devices.count)}
        self._first = nodes.number * devices.count
        self.signalled = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ended: dict[int, int] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Launch:
        with contextlib.ExitStack() as stack:
            self._reports = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmctl-ranks-")))
            stack.callback(self._kill)
            stack.enter_context(handled(self._signal))
            try:
                if self._nodes.count > 1:
                    rendezvous.meet(self._nodes, self._facts, lambda: bool(self.signalled))
            except rendezvous.Stopped:
                self._stack = stack.pop_all()
                return self
            ports = free_ports(self._devices.count + 1)
            environments = rank_environments(self._devices, os.environ, ports, self._nodes)
            with explain_os_errors(self._logs):
                self._logs.mkdir(parents=True, exist_ok=True)
                numbers = range(self._first, self._first + self._devices.count)
                outputs = [stack.enter_context(_log(self._logs, n)) if n else None for n in numbers]
            own = {
                ranks.LAUNCHER: str(os.getpid()),
                ranks.REPORTS: str(self._reports),
                ranks.RESTARTS: str(self._restarts),
            }
            for environment, output in zip(environments, outputs, strict=True):
                self._processes.append(
                    subprocess.Popen(
                        self._command,
                        env={**environment, **own},
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        # Ctrl-C reaches the launcher only, which hands it on once.
                        start_new_session=True,
                    )
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def follow(self) -> int:
        """Waits until all ranks have ended; once one failed, the others have ``GRACE`` seconds. Returns the exit code."""
        failed_at = 0.0
        while len(self._ended) < len(self._processes):
            for number, one in enumerate(self._processes):
                if self._first + number not in self._ended and one.poll() is not None:
                    self._ended[self._first + number] = one.returncode
            if not failed_at and any(self._ended.values()):
                failed_at = time.monotonic()
            if failed_at and not self.signalled and time.monotonic() - failed_at > GRACE:
                break
            time.sleep(POLL)
        running = {self._first + at: one for at, one in enumerate(self._processes) if one.poll() is None}
        for one in running.values():
            one.send_signal(ranks.WHERE)
        hanging = list(running)
        if hanging:
            time.sleep(ANSWER)
        self._kill()
        return self._explain(hanging)

    def _explain(self, hanging: Sequence[int]) -> int:
        """Says which rank failed first and why; returns the exit code.

        Args:
            hanging: The ranks that neither failed nor ended.
        """
        if not any(self._ended.values()):
            return 128 + self.signalled if self.signalled and not self._processes else 0
        reports = ranks.read_reports(self._reports)
        killed = [(number, -code) for number, code in self._ended.items() if code < 0]
        # Nothing that fails sends SIGKILL: it came from outside, and what the others report followed from it.
        if reports and not reports[0].peer_lost and not any(ended_by == signal.SIGKILL for _, ended_by in killed):
            return self._say(reports[0])
        if self.signalled:
            return next((code for code in self._ended.values() if code > 0), 128 + self.signalled)
        if killed:
            number, ended_by = killed[0]
            text = f"error: rank {number} was ended by signal {ended_by} ({signal.Signals(ended_by).name})"
            print(f"{text}{self._log_of(number)}", file=sys.stderr, flush=True)
            return 128 + ended_by
        if reports:
            if hanging:
                for number in hanging:
                    text = (
                        f"error: rank {number}{self._log_of(number)} hangs; its output ends with the code that it is at"
                    )
                    print(text, file=sys.stderr, flush=True)
                return reports[0].code
            return self._say(reports[0])
        number, code = next((number, code) for number, code in self._ended.items() if code)
        if code in INTERRUPTED:
            return code
        print(f"error: rank {number} ended with exit code {code}{self._log_of(number)}", file=sys.stderr, flush=True)
        return code

    def _say(self, report: ranks.Report) -> int:
        """Prints why a rank failed; returns its exit code."""
        where = "" if report.code == ranks.USER_ERROR else self._log_of(report.rank)
        first = f"rank {report.rank} failed first{where}:\n" if where else ""
        print(f"{first}{report.text}", file=sys.stderr, flush=True)
        return report.code

    def _log_of(self, number: int) -> str:
        return f" (its output is in {self._logs / f'rank-{number}.log'})" if number else ""

    def _signal(self, number: int, frame: Any) -> None:
        """The first signal goes to all ranks, which finish their step and save; the second one kills them."""
        if self.signalled:
            self._kill()
            return
        self.signalled = number
        for one in self._processes:
            if one.poll() is None:
                one.send_signal(number)

    def _kill(self) -> None:
        for one in self._processes:
            if one.poll() is None:
                one.kill()
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
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _log(folder: Path, number: int) -> IO[bytes]:
    return (folder / f"rank-{number}.log").open("ab")
