"""What a cluster's program says of the processes that it started: Slurm, Open MPI, Paddle's operator. No paddle here.

Each task is either a launcher of the processes of its machine, where ``--devices`` is given, or a rank itself.
"""

from __future__ import annotations

import re
import socket
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from llmctl.errors import ConfigError
from llmctl.parallel import rank as ranks
from llmctl.parallel.machines.nodes import Nodes, bound, check_interface, own_address, parse_master
from llmctl.runtime import process

PORTS = range(20000, 30000)
"""Ports that a job gets by its number, below those that the system gives to connections."""

MASTER, MASTER_PORT = "MASTER_ADDR", "MASTER_PORT"
"""Variables by which users give the address of rank 0, where a cluster does not."""

INDEX = "JOB_COMPLETION_INDEX"
"""The number of a pod of a Kubernetes Job in Indexed mode, which does not say how many there are."""

FOREIGN = (
    ("WORLD_SIZE", "RANK", "torchrun, accelerate or a PyTorchJob"),
    ("PMI_SIZE", "PMI_RANK", "mpirun of MPICH or Intel MPI"),
)
"""Variables of programs that start processes and are no cluster of ``CLUSTERS``: how many, which one this is, and whose they are."""


DIGITS, MOST = 12, 1_000_000
"""The longest number, and the most processes or machines, that an environment may have."""


class _Unfit(ValueError):
    """Variables of a cluster's program are missing, or do not fit each other; says which."""


@dataclass(frozen=True)
class Tasks:
    """The processes that a cluster's program started.

    Attributes:
        name: Of the cluster.
        number: Which one this is, from 0.
        size: How many they are.
        local: Which one this is on its machine.
        local_size: How many are on its machine.
        node: Which machine this is.
        nodes: How many machines there are.
        host: The machine of task 0; empty = not known.
        port: A port for the job there.
    """

    name: str
    number: int
    size: int
    local: int
    local_size: int
    node: int
    nodes: int
    host: str
    port: int


def recognise(environ: Mapping[str, str], chosen: str = "auto") -> Tasks | None:
    """The tasks that this process is one of; None = it was started alone.

    Args:
        environ: The environment.
        chosen: A key of ``CLUSTERS``, ``auto`` or ``none``.

    Raises:
        ConfigError: The environment is that of several clusters, or variables of one are missing or no numbers.
    """
    if chosen == "none":
        return None
    found = {
        name: tasks
        for name, read in CLUSTERS.items()
        if chosen in ("auto", name) and (tasks := _read(name, read, environ))
    }
    if chosen != "auto" and not found:
        raise ConfigError(f"--cluster {chosen}: its variables are not in the environment; leave it out")
    if "openmpi" in found:
        # In an allocation of Slurm, mpirun starts the processes.
        slurm = found.pop("slurm", None)
        if slurm and not found["openmpi"].host:
            found["openmpi"] = replace(found["openmpi"], host=slurm.host)
    if len(found) > 1:
        raise ConfigError(
            f"the environment is that of {' and of '.join(found)}; choose one with --cluster, or --cluster none"
        )
    tasks = next(iter(found.values()), None)
    if tasks is None or tasks.size == 1:
        return None
    return _addressed(tasks, environ)


def _addressed(tasks: Tasks, environ: Mapping[str, str]) -> Tasks:
    """The tasks with the address that users give in the environment."""
    host = environ.get(MASTER) or tasks.host
    if not host:
        return tasks
    given = [name for name in (MASTER, MASTER_PORT) if environ.get(name)]
    port = environ.get(MASTER_PORT) or tasks.port
    host, port = parse_master(f"{host}:{port}", f"{' and '.join(given) or tasks.name} must give")
    return replace(tasks, host=host, port=port)


def check_foreign(environ: Mapping[str, str]) -> None:
    """Checks that no other program started this process as one of several: each of them would train alone.

    Args:
        environ: The environment, in which no cluster is recognised.

    Raises:
        ConfigError: One did.
    """
    for size, number, programs in FOREIGN:
        count = whole_number(environ.get(size, ""))
        if count is not None and count > 1 and number in environ:
            raise ConfigError(
                f"the environment has {size}={count} and {number}={environ[number]}, as {programs} set them, and each of these "
                f"{count} processes would train alone; let llmctl start the processes, with --devices and, on several machines, "
                "--nnodes, --node-rank and --master; or train alone with --cluster none"
            )


def as_nodes(tasks: Tasks, master: str | None, interface: str | None) -> Nodes:
    """The machines, each with one task that starts the processes there.

    Args:
        tasks: The tasks.
        master: ``--master``; None = as the cluster says.
        interface: ``--interface``.

    Raises:
        ConfigError: A machine has several tasks, or the address of machine 0 is not known.
    """
    if tasks.size > tasks.nodes:
        raise ConfigError(
            f"{tasks.name} started {tasks.size} tasks on {tasks.nodes} machines, and --devices would start more processes in each; "
            "start one task for each machine, or leave --devices out: then each task is a process of the run"
        )
    if tasks.nodes == 1:
        return Nodes()
    host, port = _master(tasks, master)
    return Nodes(tasks.nodes, tasks.node, host, port, interface or "")


def as_rank(tasks: Tasks, environ: Mapping[str, str], master: str | None, interface: str | None) -> dict[str, str]:
    """Variables that make a task a rank.

    Args:
        tasks: The tasks.
        environ: The environment.
        master: ``--master``; None = as the cluster says.
        interface: ``--interface``.

    Raises:
        ConfigError: The address of task 0 is not known, its port is in use, or this machine has no such network interface.
    """
    host, port = _master(tasks, master)
    nodes = Nodes(tasks.nodes, tasks.node, host, port, interface or "")
    check_interface(nodes.interface)
    if tasks.number == 0:
        bound(host, port).close()
    with socket.socket() as one:
        one.bind(("", 0))
        place = f"{own_address(nodes)}:{port if tasks.number == 0 else one.getsockname()[1]}"
    endpoints = [f"{host}:{port}"] * tasks.size
    endpoints[tasks.number] = place
    visible = [gpu for gpu in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    given = whole_number(environ.get("SLURM_CPUS_PER_TASK", ""))
    cores = given or max(1, process.available_cores() // tasks.local_size)
    own_threads = {"LLMCTL_THREADS", "OMP_NUM_THREADS"} & set(environ)
    return {
        ranks.NUMBER: str(tasks.number),
        ranks.SIZE: str(tasks.size),
        "PADDLE_MASTER": f"{host}:{port}",
        "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
        "PADDLE_CURRENT_ENDPOINT": place,
        "PADDLE_LOCAL_RANK": str(tasks.local),
        "FLAGS_selected_gpus": str(tasks.local % len(visible) if visible else tasks.local),
        **({ranks.NODES: str(tasks.nodes)} if tasks.nodes > 1 else {}),
        **({} if own_threads else {"LLMCTL_THREADS": str(cores)}),
        **nodes.interface_variables,
    }


def _master(tasks: Tasks, master: str | None) -> tuple[str, int]:
    if master:
        return parse_master(master, "--master")
    if tasks.host:
        return tasks.host, tasks.port
    if tasks.nodes == 1:
        return "127.0.0.1", tasks.port
    raise ConfigError(
        f"{tasks.name} started {tasks.size} tasks on {tasks.nodes} machines, and the environment does not say which has task 0; give its "
        f"address with --master HOST:PORT, or in the variable {MASTER}"
    )


def _read(name: str, read: Callable[[Mapping[str, str]], Tasks | None], environ: Mapping[str, str]) -> Tasks | None:
    try:
        tasks = read(environ)
        if tasks:
            _check(tasks)
    except _Unfit as error:
        raise ConfigError(
            f"the variables of {name} in the environment do not fit each other: {error}; correct them, or ignore them with "
            "--cluster none (and, on several machines, --nnodes, --node-rank and --master)"
        ) from None
    return tasks


def _check(tasks: Tasks) -> None:
    """Checks that each number is below its count."""
    for what, number, count in (
        ("task", tasks.number, tasks.size),
        ("machine", tasks.node, tasks.nodes),
        ("task of its machine", tasks.local, tasks.local_size),
    ):
        if not 0 <= number < count:
            raise _Unfit(f"this would be {what} {number} of {count}, counted from 0")


def _text(environ: Mapping[str, str], name: str) -> str:
    if name not in environ:
        raise _Unfit(f"{name} is missing")
    return environ[name]


def whole_number(text: str) -> int | None:
    """The number that a text of digits is; None = it is none, or more than any machine counts."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= DIGITS else None


def _number(environ: Mapping[str, str], name: str, least: int = 0) -> int:
    text = _text(environ, name)
    number = whole_number(text)
    if number is None or number < least:
        raise _Unfit(f"{name}={text!r} is not a number of {least} or more")
    return number


def _count(environ: Mapping[str, str], name: str) -> int:
    count = _number(environ, name, 1)
    if count > MOST:
        raise _Unfit(f"{name}={count} is more than {MOST}")
    return count


def _slurm(environ: Mapping[str, str]) -> Tasks | None:
    # A batch script has SLURM_PROCID too; a step, which srun starts, has a number.
    if "SLURM_STEP_ID" not in environ:
        return None
    node, each = _number(environ, "SLURM_NODEID"), _text(environ, "SLURM_STEP_TASKS_PER_NODE")
    job, step = _number(environ, "SLURM_JOB_ID"), _number(environ, "SLURM_STEP_ID")
    try:
        local_size = tasks_per_node(each)[node]
    except (ValueError, IndexError):
        raise _Unfit(f"SLURM_STEP_TASKS_PER_NODE={each!r} has no number for SLURM_NODEID={node}") from None
    return Tasks(
        "Slurm",
        _number(environ, "SLURM_PROCID"),
        _count(environ, "SLURM_STEP_NUM_TASKS"),
        _number(environ, "SLURM_LOCALID"),
        local_size,
        node,
        _count(environ, "SLURM_STEP_NUM_NODES"),
        first_host(_text(environ, "SLURM_STEP_NODELIST")),
        PORTS[(job * 64 + step) % len(PORTS)],
    )


def _open_mpi(environ: Mapping[str, str]) -> Tasks | None:
    if "OMPI_COMM_WORLD_RANK" not in environ:
        return None
    number, size = _number(environ, "OMPI_COMM_WORLD_RANK"), _count(environ, "OMPI_COMM_WORLD_SIZE")
    local = _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK")
    local_size = _count(environ, "OMPI_COMM_WORLD_LOCAL_SIZE")
    job = environ.get("PMIX_NAMESPACE") or environ.get("OMPI_MCA_ess_base_jobid", "")
    # By slots, the default, tasks of a machine are neighbours and machines have as many.
    node = number // local_size
    return Tasks(
        "Open MPI", number, size, local, local_size, node, -(-size // local_size), "",
        PORTS[zlib.crc32(job.encode()) % len(PORTS)],
    )  # fmt: skip


def _paddlejob(environ: Mapping[str, str]) -> Tasks | None:
    # Paddle's launcher, which a pod may run, sets the address of each rank too.
    if "PADDLE_TRAINERS" not in environ or "PADDLE_CURRENT_ENDPOINT" in environ:
        return None
    number, size = _number(environ, ranks.NUMBER), _count(environ, ranks.SIZE)
    hosts = environ["PADDLE_TRAINERS"].split(",")
    if len(hosts) != size:
        raise _Unfit(f"PADDLE_TRAINERS has {len(hosts)} of {ranks.SIZE}={size} addresses")
    return Tasks("PaddleJob", number, size, 0, 1, number, size, hosts[0], _number(environ, "PADDLE_PORT", 1))


CLUSTERS: Mapping[str, Callable[[Mapping[str, str]], Tasks | None]] = {
    "slurm": _slurm,
    "openmpi": _open_mpi,
    "paddlejob": _paddlejob,
}
"""Name -> how its variables are read; None = they are not there."""


def first_host(nodelist: str) -> str:
    """The first machine of a list such as ``gpu[03-05,09],login1``, as Slurm writes it."""
    depth = 0
    for index, letter in enumerate(nodelist):
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            nodelist = nodelist[:index]
            break
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodelist)


def tasks_per_node(text: str) -> list[int]:
    """Tasks of each machine, from ``8(x2),4``.

    Raises:
        ValueError: It is no such list.
    """
    found: list[int] = []
    for part in text.split(","):
        form = re.fullmatch(r"(\d{1,6})(?:\(x(\d{1,6})\))?", part, re.ASCII)
        if not form:
            raise ValueError(f"{part!r} is no number of tasks")
        found += [int(form[1])] * int(form[2] or 1)
    return found
