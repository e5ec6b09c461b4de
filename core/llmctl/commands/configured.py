"""The commands ``finetune``, ``dpo`` and ``pretrain``: read a configuration, apply overrides, then print, check or run it."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmctl.api import training
from llmctl.checkpoint.hf_config import NAME as CONFIG
from llmctl.checkpoint.hf_config import read_config
from llmctl.checkpoint.locate import locate
from llmctl.commands.completion import complete_recipe, complete_setting
from llmctl.commands.device_options import device_options
from llmctl.commands.messages import Messages, messages, verbosity
from llmctl.commands.model_option import ModelOption, model_option
from llmctl.commands.recipe import NoStarter, of_checkpoint, output_settings, recipe_header
from llmctl.commands.renamed import Renamed
from llmctl.config import file, schema
from llmctl.errors import require_installed
from llmctl.jobs import lengths
from llmctl.jobs.paths import LOGS, settings_of_restart
from llmctl.parallel import launch, rank
from llmctl.parallel.arrangement import least_size
from llmctl.parallel.machines.start import Options, Start, check_restarts, decide
from llmctl.plugins import Families
from llmctl.train.console import Console, JsonConsole
from llmctl.train.interrupt import Interrupted

if TYPE_CHECKING:
    from llmctl.jobs.job import CheckedJob

ConfigSource = Callable[[Families, str, bool, Path | None, str | None, bool], tuple[dict[str, Any], str]]
"""(families, family, whether a model is named, file, recipe, allow_ignored) -> (raw configuration, where it comes from, for
messages)."""

MODEL = "Family, or the model: a folder or a name on a hub, the same as --set model.path=MODEL."
JSON = "Print JSON lines to standard output, an object for each event, instead of words."
FORMER = {"--check": ("--dry-run",)}
"""Option -> other names that it is known by."""
SET = "Override a field; may be repeated."


def configured(name: str, doc: str, source: ConfigSource, recipe_help: str) -> click.Command:
    """A command that reads and checks a configuration without paddle, then trains.

    Args:
        name: Its name, one of ``jobs.registry.COMMANDS``.
        doc: Its help text.
        source: Finds the configuration.
        recipe_help: Help text of ``--recipe``.
    """

    def callback(
        ctx: click.Context, config_file: Path | None, recipe: str | None, assignments: tuple[str, ...],
        output: str | None, resume: bool, overwrite: bool, print_config: bool, check: bool, allow_ignored: bool,
        devices: str | None, nnodes: int | None, node_rank: int | None, master: str | None, interface: str | None,
        cluster: str, max_restarts: int, as_json: bool,
    ) -> None:  # fmt: skip
        families, model, say = Families(), model_settings(ctx.obj, assignments), messages(ctx)
        given = [*assignments, *output_settings(output, resume, overwrite), *model]
        path = _value(given, "model", "path")
        family = ctx.obj.family if recipe is None else recipe_family(ctx.obj, families, path)
        if print_config and config_file is None and recipe is None and family == "auto":
            data, where = dict[str, Any](), "the command line"
        else:
            try:
                data, where = source(families, family, bool(path), config_file, recipe, allow_ignored)
            except NoStarter:
                if not print_config:
                    raise
                data, where = {}, "the command line"
        from_recipe = config_file is None and bool(data)
        if assignments and data:
            where = f"{where} and --set"
        if from_recipe and path:
            data = of_checkpoint(data)
        config = training.make_config(name, data, given, where)
        if from_recipe:
            config = _suit_model(config, data, given, family, families, say)
        if print_config:
            about = recipe_header(name, families, family, recipe) if from_recipe else []
            chosen = "" if family == "auto" or (model and not from_recipe) else f"--model {family} "
            run = f"{'Or, with this file' if about else 'Run with'}: llmctl {chosen}{name} CONFIG"
            click.echo(schema.to_yaml(config, "\n".join([*about, run])), nl=False)
            return
        if not check:
            require_installed("paddle", "cpu", f"llmctl {name}")
        start = decide(Options(devices, nnodes, node_rank, master, interface, cluster), os.environ)
        check_restarts(max_restarts, start)
        counted = start.size > 1 or devices or not check
        training.check_devices(config, start.size if counted else least_size(config.parallel))
        with _without_warnings() if start.launches and not check else contextlib.nullcontext():
            job = training.check_job(name, config, family, families)
        if check:
            _say_checked(job, as_json, say)
            return
        if start.launches:
            ctx.exit(_launch(job, start, max_restarts, as_json, say))
        os.environ.update(start.variables)
        ctx.exit(_train(job, (JsonConsole if as_json else Console)(say.quiet, say.verbose)))

    made = click.Command(name, callback=click.pass_context(callback), params=_parameters(recipe_help), help=doc)
    return verbosity(model_option(MODEL)(made))


def _train(job: CheckedJob[Any], console: Console) -> int:
    """Trains in this process, which may be one of several; returns the exit code."""
    this = rank.from_environment()
    with rank.reporting(this) if this else contextlib.nullcontext():
        try:
            training.run_job(job, console=console)
            code = 0
        except Interrupted as stop:
            code = stop.exit_code
            if stop.step is None:
                rank.stop(str(stop), code)
    if this:
        rank.leave(code)
    return code


def _launch(job: CheckedJob[Any], start: Start, restarts: int, as_json: bool, say: Messages) -> int:
    """Trains by several processes, which check the job once more and say what there is to say; returns the exit code."""
    from llmctl.train import alike

    given = {"--json": as_json, "--quiet": say.quiet, "--verbose": say.verbose}
    options = [name for name, is_set in given.items() if is_set]
    command = ["--model", job.model.plugin.card.name, job.command, "/dev/stdin", *options]
    config = schema.to_yaml(job.config, "")
    again = settings_of_restart(job.output, job.config.output)
    return launch.run(command, start.devices, job.output / LOGS, restarts, start.nodes, alike.named(job), config, again)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def model_settings(option: ModelOption, assignments: Sequence[str]) -> list[str]:
    """A model given by ``--model`` as an assignment of ``--set``; empty without one.

    Args:
        option: The option.
        assignments: What ``--set`` gives.

    Raises:
        click.UsageError: ``--set`` has another one.
    """
    if not option.names_folder:
        return []
    given = _value(assignments, "model", "path")
    if given not in (None, option.text):
        raise click.UsageError(f"--model is {option.text} and --set model.path is {given}; give one of them")
    return [f"model.path={json.dumps(option.text)}"]


def _value(assignments: Sequence[str], section: str, key: str) -> Any:
    """The value of ``section.key`` in assignments; None if they have none."""
    return file.override({}, assignments).get(section, {}).get(key)


def recipe_family(option: ModelOption, families: Families, path: Any) -> str:
    """The family of a recipe: the one that is named, else that of the model's config.json, else ``auto``."""
    if option.family != "auto" or not isinstance(path, str) or not path:
        return option.family
    folder = locate(path, weights=False)
    if not (folder / CONFIG).is_file():
        return option.family
    return families.load_for(read_config(folder), str(folder / CONFIG)).card.name


def _suit_model(
    config: Any, recipe: dict[str, Any], assignments: Sequence[str], family: str, families: Families, say: Messages
) -> Any:
    """The configuration with lengths of a recipe that fit the model and what was set; prints what it changed."""
    chosen = file.override({}, assignments).get("data", {})
    loose = [key for key in recipe.get("data", {}) if key not in chosen]
    made, note = lengths.loosened(config, loose, family, families)
    if note:
        say.note(note)
    return made


def _say_checked(job: CheckedJob[Any], as_json: bool, say: Messages) -> None:
    if as_json:
        click.echo(json.dumps({"event": "check", "ok": True, "summary": job.summary(), "notes": list(job.notes)}))
    elif not say.quiet:
        click.echo("\n".join([*job.notes, f"ok: {job.summary()}"]))


def _parameters(recipe_help: str) -> list[click.Parameter]:
    switches = {
        "--resume": "Continue from the newest checkpoint in the output folder.",
        "--overwrite": "Delete the results of an earlier run in the output folder.",
        "--print-config": "Print the complete configuration with a comment on every field, and exit.",
        "--check": "Check the configuration, model and data, and exit.",
        "--allow-ignored": "With a file of PaddleNLP or LLaMA-Factory: ignore features that llmctl does not support.",
    }
    return [
        click.Argument(["config_file"], metavar="[CONFIG]", required=False, type=click.Path(path_type=Path)),
        click.Option(["--recipe"], metavar="NAME", shell_complete=complete_recipe, help=recipe_help),
        click.Option(
            ["--set", "assignments"], multiple=True, metavar="a.b=c", shell_complete=complete_setting, help=SET
        ),
        click.Option(["--output"], metavar="FOLDER", help="Output folder; the same as --set output.dir=FOLDER."),
        *(Renamed([name], former=FORMER.get(name, ()), is_flag=True, help=text) for name, text in switches.items()),
        *device_options(),
        click.Option(
            ["--max-restarts"],
            metavar="N",
            type=click.IntRange(min=0),
            default=0,
            help="With several processes: start all processes again, from the newest checkpoint, up to N times after one failed.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help=JSON),
    ]
