"""``llmctl.finetune``, ``llmctl.dpo`` and ``llmctl.pretrain``: training as the commands do it, from Python.

The commands call ``make_config``, ``check_job`` and ``run_job``; the three functions are these in a row.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl import runtime
from llmctl.api.run import Run
from llmctl.config import file, schema
from llmctl.errors import ConfigError, require_installed
from llmctl.io.progress import silent, waiting
from llmctl.io.sizes import parse_bytes
from llmctl.jobs.paths import hold_output
from llmctl.jobs.registry import COMMANDS, resolve
from llmctl.parallel.arrangement import arrange, check_passes
from llmctl.parallel.machines.rendezvous import meet_ranks
from llmctl.parallel.rank import LAUNCHER, Rank, from_environment
from llmctl.parallel.ranks import ALONE, Ranks
from llmctl.parallel.topology import Topology
from llmctl.runtime.signals import handled
from llmctl.train.callbacks.base import Callback
from llmctl.train.console import Console

if TYPE_CHECKING:
    from llmctl.config.dpo import DpoConfig
    from llmctl.config.finetune import FinetuneConfig
    from llmctl.config.pretrain import PretrainConfig
    from llmctl.jobs.job import CheckedJob
    from llmctl.plugins import Families


def finetune(
    config: Mapping[str, Any] | str | Path | FinetuneConfig,
    family: str = "auto",
    *,
    overrides: Sequence[str] = (),
    callbacks: Iterable[Callback] = (),
    quiet: bool = False,
) -> Run:
    """Fine-tunes a model on prompts and answers, as ``llmctl finetune`` does.

    Args:
        config: The configuration: nested mappings, a ``FinetuneConfig``, or the path of a YAML or JSON file.
        family: Name of the model's family, or ``"auto"`` for the one that its config.json names.
        overrides: Assignments such as ``"train.max_steps=100"`` on top, as for ``--set``.
        callbacks: Called at each event, after the run's own callbacks.
        quiet: Print nothing. Else a terminal or notebook shows a progress bar, and a pipe or file gets lines.

    Returns:
        The finished run.

    Raises:
        LlmctlError: The configuration, model or data cannot be used, or a loss or gradient is not finite.
        KeyboardInterrupt: Ctrl-C in the main thread; the current step was finished and a checkpoint saved.
    """
    return _train("finetune", config, family, overrides, callbacks, quiet)


def dpo(
    config: Mapping[str, Any] | str | Path | DpoConfig,
    family: str = "auto",
    *,
    overrides: Sequence[str] = (),
    callbacks: Iterable[Callback] = (),
    quiet: bool = False,
) -> Run:
    """Trains a model to prefer the better of two answers, as ``llmctl dpo`` does; see ``finetune``.

    Args:
        config: The configuration: nested mappings, a ``DpoConfig``, or the path of a YAML or JSON file.
        family: As for ``finetune``.
        overrides: As for ``finetune``.
        callbacks: As for ``finetune``.
        quiet: As for ``finetune``.
    """
    return _train("dpo", config, family, overrides, callbacks, quiet)


def pretrain(
    config: Mapping[str, Any] | str | Path | PretrainConfig,
    family: str = "auto",
    *,
    overrides: Sequence[str] = (),
    callbacks: Iterable[Callback] = (),
    quiet: bool = False,
) -> Run:
    """Trains a new model or a checkpoint on corpora of token ids, as ``llmctl pretrain`` does; see ``finetune``.

    Args:
        config: The configuration: nested mappings, a ``PretrainConfig``, or the path of a YAML or JSON file.
        family: As for ``finetune``; a new model of ``model.size`` needs a name.
        overrides: As for ``finetune``.
        callbacks: As for ``finetune``.
        quiet: As for ``finetune``.
    """
    return _train("pretrain", config, family, overrides, callbacks, quiet)


def _train(
    command: str, config: Any, family: str, overrides: Sequence[str], callbacks: Iterable[Callback], quiet: bool
) -> Run:
    data, where = _read(command, config)
    callbacks = _instances(callbacks)
    require_installed("paddle", "cpu", f"llmctl {command}")
    with silent(quiet):
        job = check_job(command, make_config(command, data, overrides, where, "overrides: "), family)
        return run_job(job, callbacks, quiet)


def make_config(
    command: str, data: Mapping[str, Any], overrides: Sequence[str], where: str, option: str = "--set "
) -> Any:
    """The configuration of a command, an instance of its class.

    Args:
        command: The command.
        data: The configuration as nested mappings.
        overrides: Assignments on top.
        where: Where the data come from, for messages.
        option: What messages put before an assignment.

    Raises:
        ConfigError: Lists every unknown key, wrong type and value out of range at once.
    """
    return schema.build(resolve(COMMANDS[command].config), file.override(dict(data), overrides, option), where)


def check_job(command: str, config: Any, family: str, families: Families | None = None) -> CheckedJob[Any]:
    """The job of a configuration; arguments and errors as for ``jobs.job.Check``. Needs no paddle."""
    job: CheckedJob[Any] = resolve(COMMANDS[command].check)(config, family, families)
    return job


def check_devices(config: Any, size: int) -> Topology:
    """How a number of devices shares the steps of a run.

    Args:
        config: The configuration.
        size: The number.

    Raises:
        ConfigError: The degrees of ``parallel`` do not fit the number, or a device would have nothing to do in a step.
    """
    topology, train = arrange(config.parallel, size), config.train
    check_passes(train.grad_accumulation, train.batch_size, topology, config.parallel.chunks)
    return topology


def run_job(
    job: CheckedJob[Any], callbacks: Sequence[Callback] = (), quiet: bool = False, console: Console | None = None
) -> Run:
    """Trains; arguments and errors as for ``finetune``.

    In a process of a launcher this is one of the ranks, and rank 0 writes.

    Args:
        job: The checked job.
        callbacks: Called at each event.
        quiet: Print nothing.
        console: Where it prints instead.
    """
    rank, console = from_environment(), console or Console(quiet)
    topology = check_devices(job.config, rank.size if rank else 1)
    with contextlib.ExitStack() as stack:
        if rank is None or rank.number == 0:
            stack.enter_context(hold_output(job.output, job.config.output))
        with silent() if console.quiet else waiting("importing paddle"):
            runtime.import_paddle(f"llmctl {job.command}")
            from llmctl.train import trainer
        trainer.run(job, callbacks, console, _ranks(rank, topology, job))
    return Run(job.output)


def _ranks(rank: Rank | None, topology: Topology, job: CheckedJob[Any]) -> Ranks:
    """The processes that train together; they are connected when this returns."""
    if rank is None:
        return ALONE
    from llmctl.parallel.mesh import Mesh
    from llmctl.train import alike

    parallel = job.config.parallel
    bucket = parse_bytes(parallel.bucket, "parallel.bucket=")
    # Python would look at a signal only when all ranks are there.
    with handled(signal.SIG_DFL):
        if LAUNCHER not in os.environ:
            meet_ranks(rank, os.environ["PADDLE_MASTER"], alike.named(job))
        return Mesh(topology, rank, parallel.hang_seconds, bucket)


def _read(command: str, config: Any) -> tuple[Mapping[str, Any], str]:
    """The configuration as nested mappings, and where it comes from."""
    cls = resolve(COMMANDS[command].config)
    if isinstance(config, cls):
        return schema.to_dict(config), cls.__name__
    if isinstance(config, Mapping):
        return config, "config"
    if isinstance(config, str | Path):
        from llmctl.migrate.config_file import read_config_file

        return read_config_file(Path(config), command), str(config)
    raise ConfigError(
        f"llmctl.{command} takes a dict, a {cls.__name__} or the path of a file, not {type(config).__name__}"
    )


def _instances(callbacks: Iterable[Callback]) -> list[Callback]:
    listed = list(callbacks)
    for callback in listed:
        if isinstance(callback, type) and issubclass(callback, Callback):
            raise ConfigError(f"callbacks: {callback.__name__} is a class; give an instance, {callback.__name__}()")
        if not isinstance(callback, Callback):
            raise ConfigError(
                f"callbacks: {callback!r} is not an llmctl.Callback; derive its class from llmctl.Callback"
            )
    return listed
