"""How a training command starts: alone, as a launcher of processes, or as one of the processes. Nothing here imports paddle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmctl.errors import ConfigError
from llmctl.parallel import rank as ranks
from llmctl.parallel.launch import Devices, parse_devices
from llmctl.parallel.machines.clusters import (
    INDEX,
    MASTER,
    MASTER_PORT,
    Tasks,
    as_nodes,
    as_rank,
    check_foreign,
    recognise,
    whole_number,
)
from llmctl.parallel.machines.nodes import Nodes, make_nodes, parse_master
from llmctl.parallel.rank import Rank


@dataclass(frozen=True)
class Options:
    """What the command line says of devices and machines; None = nothing.

    Attributes:
        devices: ``--devices``.
        nnodes: ``--nnodes``.
        node_rank: ``--node-rank``.
        master: ``--master``.
        interface: ``--interface``.
        cluster: ``--cluster``.
    """

    devices: str | None = None
    nnodes: int | None = None
    node_rank: int | None = None
    master: str | None = None
    interface: str | None = None
    cluster: str = "auto"


@dataclass(frozen=True)
class Start:
    """How a command starts.

    Attributes:
        size: Number of processes that train together.
        launches: Whether this one starts those of its machine.
        devices: The processes of this machine.
        nodes: The machines.
        variables: Environment variables that make this process one of them; empty = they are there, or it trains alone.
    """

    size: int
    launches: bool = False
    devices: Devices = field(default_factory=lambda: Devices(1))
    nodes: Nodes = field(default_factory=Nodes)
    variables: Mapping[str, str] = field(default_factory=dict)


def decide(options: Options, environ: Mapping[str, str]) -> Start:
    """How a command starts: options first, then what a launcher or a cluster says in the environment.

    Args:
        options: The options.
        environ: The environment.

    Raises:
        ConfigError: Options or environment do not fit each other, or are ambiguous.
    """
    tasks = None if ranks.LAUNCHER in environ else recognise(environ, options.cluster)
    this = ranks.from_environment(environ) if tasks is None or tasks.name != "PaddleJob" else None
    if this:
        names = ("devices", "nnodes", "node_rank", "master", "interface")
        given = [name.replace("_", "-") for name in names if getattr(options, name) is not None]
        if given:
            raise ConfigError(
                f"--{given[0]}: this process is number {this.number} of {this.size} that another launcher started "
                f"({ranks.SIZE} in the environment); leave it out, or unset the variable"
            )
        if ranks.LAUNCHER not in environ:
            check_places(this, environ)
        return Start(this.size)
    if not tasks and options.nnodes is None and options.cluster == "auto":
        check_foreign(environ)
    devices = parse_devices(options.devices) if options.devices is not None else Devices(1)
    if options.nnodes is not None or not tasks:
        nodes = _nodes(options, tasks, environ)
        size = devices.count * nodes.count
        return Start(size, size > 1, devices, nodes)
    if options.devices is None:
        return Start(tasks.size, variables=as_rank(tasks, environ, options.master, options.interface))
    nodes = as_nodes(tasks, options.master, options.interface)
    size = devices.count * nodes.count
    return Start(size, size > 1, devices, nodes)


def check_places(this: Rank, environ: Mapping[str, str]) -> None:
    """Checks that another launcher told this rank the addresses of all.

    Args:
        this: The rank.
        environ: The environment.

    Raises:
        ConfigError: It did not.
    """
    own, places = environ.get("PADDLE_CURRENT_ENDPOINT", ""), environ.get("PADDLE_TRAINER_ENDPOINTS", "").split(",")
    given = {"PADDLE_MASTER": [environ.get("PADDLE_MASTER", "")], "PADDLE_CURRENT_ENDPOINT": [own]}
    for name, texts in (given | {"PADDLE_TRAINER_ENDPOINTS": places}).items():
        for text in texts:
            parse_master(text, f"{ranks.SIZE}={this.size} is in the environment, so {name} must have", "a rank")
    if len(places) != this.size or places[this.number] != own:
        raise ConfigError(
            f"the environment has {ranks.SIZE}={this.size} and {ranks.NUMBER}={this.number}, so PADDLE_TRAINER_ENDPOINTS must have "
            f"{this.size} addresses, that of rank {this.number} being PADDLE_CURRENT_ENDPOINT={own}; it has {','.join(places)}. Unset "
            "these variables to train in one process"
        )


def check_restarts(restarts: int, start: Start) -> None:
    """Checks that ``--max-restarts`` has an effect.

    Args:
        restarts: Its value.
        start: How the command starts.

    Raises:
        ConfigError: It has none: this process starts no others.
    """
    if restarts and not start.launches:
        why = (
            "it is one process; add --devices"
            if start.size == 1
            else (f"another program started this process as one of {start.size} and is to start it again; leave it out")
        )
        raise ConfigError(f"--max-restarts {restarts} has no effect: {why}")


def _nodes(options: Options, tasks: Tasks | None, environ: Mapping[str, str]) -> Nodes:
    """The machines that ``--nnodes`` counts; what other options leave out is filled in from the environment."""
    count, number, master = options.nnodes or 1, options.node_rank, options.master
    if count > 1:
        by_machine = tasks is not None and tasks.size == tasks.nodes == count
        if number is None:
            number = tasks.node if tasks and by_machine else whole_number(environ.get(INDEX, ""))
        if master is None:
            host = tasks.host if tasks and by_machine else environ.get(MASTER, "")
            port = tasks.port if tasks and by_machine else environ.get(MASTER_PORT, "")
            master = f"{host}:{port}" if host else None
    return make_nodes(count, number, master, options.interface)
