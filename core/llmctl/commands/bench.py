"""``llmctl bench``: how fast an engine answers on this machine, in tokens per second, and what memory it takes."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmctl.commands.engine_options import adapter_options, engine_options, options_of
from llmctl.commands.messages import messages, results
from llmctl.commands.model_option import model_option
from llmctl.errors import ConfigError
from llmctl.infer.select import open_backend
from llmctl.io.atomic import atomic_file
from llmctl.io.progress import tracked

if TYPE_CHECKING:
    from llmctl.infer.bench import Load, Round
    from llmctl.infer.handle import EngineHandle


@dataclass(frozen=True)
class NoEnd:
    """In place of a tokenizer: no token ends an answer, so that all answers have the length that was asked for."""

    eos_ids: tuple[int, ...] = ()
    pad_id: int = 0


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@model_option("The same as MODEL; or the family of the model.")
@engine_options
@adapter_options
@click.option("--random", metavar="SIZE",
              help="Benchmark a model with random weights instead of MODEL: a size of the family given by --model, "
              "or dimensions such as layers=8,hidden=512.")  # fmt: skip
@click.option("--prompt-tokens", type=click.IntRange(1), default=128, show_default=True, help="Tokens in each prompt.")
@click.option(
    "--new-tokens", type=click.IntRange(1), default=64, show_default=True, help="Tokens to generate for each prompt."
)
@click.option("--requests", type=click.IntRange(1), default=1, show_default=True, help="Concurrent requests.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Measured rounds.")
@click.option(
    "--warm-up", type=click.IntRange(0), default=1, show_default=True, help="Warm-up rounds, reported separately."
)
@click.option(
    "--output", "file", metavar="FILE", type=click.Path(path_type=Path), help="File of JSON for all measurements."
)
@results
@click.pass_context
def command(ctx: click.Context, /, model: Path | None, random: str | None, file: Path | None, **given: Any) -> None:
    """Benchmark prefill and decoding of the model in the folder MODEL, or of one with random weights."""
    chosen, say = None, messages(ctx)
    if (model is None and not ctx.obj.names_folder) == (random is None):
        raise click.UsageError("give MODEL or --random, and not both")
    if random is None:
        chosen = ctx.obj.folder_or(model)
    if file is not None and file.exists() and not file.is_file():
        raise ConfigError(f"--output {file} is a folder, a device or a pipe; name a file")
    with _folder(chosen, random, ctx.obj.family) as folder:
        handle = open_backend(folder, ctx.obj.family, options_of(given, batch_size=given["requests"]))
        say.notes(handle.notes)
        from llmctl.infer.bench import Load, measure, peak_memory, summary

        ending = _ending(handle, random is not None)
        load = Load(prompt=given["prompt_tokens"], new=given["new_tokens"], requests=given["requests"],
                    vocab=handle.vocab, ending=ending)  # fmt: skip
        if len(ending) >= load.prompt:
            raise ConfigError(
                f"--prompt-tokens must be above {len(ending)}: prompts of this family end with such tokens"
            )
        _check_positions(load, handle.positions)
        begin = time.perf_counter()
        loaded = handle.load(NoEnd(), [load.prompt + load.new] * load.requests)
        loading = time.perf_counter() - begin
        say.notes(loaded.notes)
        _check_positions(load, loaded.max_positions)
        seeds = range(given["warm_up"] + given["rounds"])
        rounds = [measure(loaded.backend, load, seed) for seed in tracked(seeds, "measuring", len(seeds))]
        warm, counted = rounds[: given["warm_up"]], rounds[given["warm_up"] :]
    found = {
        "model": str(chosen) if chosen else f"random {random}", "engine": loaded.engine,
        **{name: given[name] for name in ("weights", "group", "kv")}, "prompt_tokens": load.prompt,
        "new_tokens": load.new, "requests": load.requests, "seconds_to_load": loading, "peak_bytes": peak_memory(),
        **summary(counted),
    }  # fmt: skip
    if say.json:
        say.result("", **_content(found, warm, counted))
    elif not say.quiet:
        _show(found, load, warm, counted)
    if file is not None:
        with atomic_file(file) as path:
            path.write_text(json.dumps(_content(found, warm, counted), indent=1) + "\n", encoding="utf-8")


@contextmanager
def _folder(model: Path | None, random: str | None, family: str) -> Iterator[Path]:
    """The folder of the model; one with random weights is removed again."""
    if model is not None:
        yield model
        return
    from llmctl import plugins
    from llmctl.infer.random_model import dims_of, write_random

    if family == "auto":
        raise click.UsageError("--random needs a family: llmctl --model FAMILY bench --random SIZE")
    plugin = plugins.load(family)
    dims = dims_of(plugin, random or "")
    with tempfile.TemporaryDirectory(prefix="llmctl-bench-") as folder:
        click.echo(f"random {family}: {plugin.card.count(dims):,} parameters", err=True)
        write_random(Path(folder), plugin, dims)
        yield Path(folder)


def _check_positions(load: Load, positions: int) -> None:
    """Checks that prompt and answer fit a number of positions; 0 = any."""
    if positions and load.prompt + load.new > positions:
        raise ConfigError(
            f"--prompt-tokens {load.prompt} and --new-tokens {load.new} are over the {positions} positions of the model"
        )


def _ending(handle: EngineHandle, is_random: bool) -> tuple[int, ...]:
    """Tokens that every prompt of the model needs at its end.

    Args:
        handle: The engine.
        is_random: Whether the model has random weights, and no tokenizer.
    """
    if handle.prefix_lm is not None:
        return (handle.prefix_lm.mask_ids[0], handle.prefix_lm.end)
    if is_random:
        return ()
    from llmctl.errors import FileError, TokenizerError

    try:
        return tuple(handle.tokenizer("none").special.bridge)
    except (TokenizerError, FileError):
        return ()


def _show(found: dict[str, Any], load: Load, warm: list[Round], counted: list[Round]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{found['engine']}: {load.requests} x {load.prompt} + {load.new} tokens")
    for column in ("round", "prompts, tokens/s", "answers, tokens/s", "total, tokens/s", "first token, ms"):
        table.add_column(column, justify="left" if column == "round" else "right")
    for name, rows in (("warm-up", warm), ("round", counted)):
        for number, row in enumerate(rows, 1):
            first = sum(row.first) / len(row.first)
            speeds = (f"{value:,.1f}" for value in (row.prefill, row.decode, row.whole))
            table.add_row(f"{name} {number}", *speeds, f"{1000 * first:,.1f}")
    console = Console()
    console.print(table)
    for what, key in (
        ("to the first token", "seconds_to_first_token"),
        ("from token to token", "seconds_between_tokens"),
    ):
        parts = "  ".join(f"{name} {1000 * value:,.2f} ms" for name, value in found[key].items())
        console.print(f"{what}: {parts or 'nothing to measure'}", highlight=False)
    speeds = found["tokens_per_second"]
    console.print(
        f"medians: prompts {speeds['prefill']:,.1f} tokens/s, answers {speeds['decode']:,.1f} tokens/s; loaded in "
        f"{found['seconds_to_load']:.2f} s; peak memory {found['peak_bytes'] / 1e6:,.0f} MB",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _content(found: dict[str, Any], warm: list[Round], counted: list[Round]) -> dict[str, Any]:
    """All measurements, and what they depend on."""
    from llmctl import plugins, runtime
    from llmctl.infer.bench import as_json

    settings = {row[0]: row[1] for row in runtime.describe()}
    return {
        **found, "versions": dict(plugins.versions()), "runtime": settings,
        "warm_up": [as_json(row) for row in warm], "rounds": [as_json(row) for row in counted],
    }  # fmt: skip
