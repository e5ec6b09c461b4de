"""``llmctl eval``: how well models predict held-out text or answers, or what they score in tasks, side by side."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmctl.commands.engine_options import CommandLineOptions, show_notes
from llmctl.commands.eval_tasks import run_tasks, tasks_of
from llmctl.commands.model_option import model_option
from llmctl.errors import ConfigError, UnsupportedError
from llmctl.infer.options import ENGINES, KV, WEIGHTS
from llmctl.infer.select import open_backend

if TYPE_CHECKING:
    from llmctl.infer.handle import EngineHandle, LoadedEngine
    from llmctl.infer.perplexity.measure import Measures
    from llmctl.infer.perplexity.windows import Passage
    from llmctl.tokenizers import Tokenizer

EXACT = "float32"
"""Type of the KV cache, so that differences of models are none of the cache."""

WINDOW = 1024
"""Tokens of a window, where the model has as many positions."""


OPTIONS_OF = {
    "--text": ("window", "stride"),
    "--tasks": ("include_path", "num_fewshot", "limit", "apply_chat_template"),
}
"""Options that have an effect with one source only."""


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate.

    Attributes:
        name: How it is called in the table.
        handle: The engine, checked and not loaded.
        tokenizer: Its tokenizer.
    """

    name: str
    handle: EngineHandle
    tokenizer: Tokenizer


@click.command()
@click.argument("models", type=click.Path(path_type=Path), nargs=-1, metavar="MODEL...")
@model_option("The same as MODEL; or the family of the models.")
@click.option("--text", "text_file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Measure on this plain text, in overlapping windows.")  # fmt: skip
@click.option("--data", "data_file", metavar="FILE", type=click.Path(exists=True, path_type=Path),
              help="Measure on the answers of these examples, in any format of fine-tuning data.")  # fmt: skip
@click.option("--tasks", metavar="NAME,...",
              help="Run these tasks, groups or tags of lm-evaluation-harness; a pattern such as mmlu_* is several.")  # fmt: skip
@click.option("--window", type=click.IntRange(2), metavar="N",
              help=f"With --text: tokens that the model reads at once. [default: its positions, up to {WINDOW}]")  # fmt: skip
@click.option("--stride", type=click.IntRange(1), metavar="N",
              help="With --text: tokens from one window to the next. [default: half of --window]")  # fmt: skip
@click.option("--include-path", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
              help="With --tasks: folder of tasks of your own (.yaml).")  # fmt: skip
@click.option("--num-fewshot", type=click.IntRange(0), metavar="N",
              help="With --tasks: solved examples in each prompt. [default: as the task says]")  # fmt: skip
@click.option("--limit", type=click.FloatRange(0, min_open=True), metavar="N",
              help="With --tasks: only the first N documents of each task; below 1, a share of them.")  # fmt: skip
@click.option("--apply-chat-template", is_flag=True, help="With --tasks: write prompts with the chat template.")
@click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True, help="As in llmctl generate.")
@click.option("--weights", type=click.Choice(WEIGHTS), multiple=True,
              help="Data type of the weights (fused); may be repeated, to compare them. [default: that of the checkpoint]")  # fmt: skip
@click.option("--group", type=int, metavar="N", help="Quantization group size of int8 and int4 weights (fused).")
@click.option("--kv", type=click.Choice(KV), help=f"Data type of the KV cache (fused). [default: {EXACT}]")
@click.option(
    "--adapter",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Folder of a LoRA adapter or prefix for every MODEL.",
)
@click.option("--chat-template", default="auto", show_default=True, help="As data.chat_template.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, /, models: tuple[Path, ...], as_json: bool, **given: Any) -> None:
    """Measure how well models predict text (perplexity, bits per byte, distance from the first model) or solve tasks.

    MODEL is a folder that llmctl generate runs (a checkpoint, an adapter, packed weights, a quantized checkpoint), a GGUF file, or
    a name on a hub. Several models, or several --weights, are compared with the first: KL is the mean Kullback-Leibler divergence of a
    token's prediction, and same top is how often the likeliest token is the same.

    --tasks needs the extra eval: pip install 'paddle-llmctl[eval]'.
    """
    _check_options(given)
    tasks = tasks_of(given) if given["tasks"] is not None else None
    folders = models or (ctx.obj.folder_or(None),)
    candidates = [
        _candidate(folder, kind, ctx.obj.family, given, len(folders) > 1, len(given["weights"]) > 1)
        for folder in folders
        for kind in given["weights"] or (None,)
    ]
    if tasks is not None:
        run_tasks([(one.name, one.handle, one.tokenizer) for one in candidates], tasks, as_json)
        return
    passages = [_passage(one, given) for one in candidates]
    rows = _evaluate(candidates, passages)
    if as_json:
        click.echo(json.dumps([_facts(one, *row) for one, row in zip(candidates, rows, strict=True)], indent=1))
    else:
        _print(candidates, rows)


def _check_options(given: dict[str, Any]) -> None:
    sources = {"--text": "text_file", "--data": "data_file", "--tasks": "tasks"}
    chosen = [flag for flag, name in sources.items() if given[name] is not None]
    if len(chosen) != 1:
        raise click.UsageError("give --text FILE, --data FILE or --tasks NAMES, and only one of them")
    for flag, names in OPTIONS_OF.items():
        idle = [name for name in names if given[name] not in (None, False)]
        if flag not in chosen and idle:
            words = " and ".join(f"--{name.replace('_', '-')}" for name in idle)
            beside = "is for {}; leave it out" if len(idle) == 1 else "are for {}; leave them out"
            raise click.UsageError(f"{words} {beside.format(flag)} with {chosen[0]}")
    if given["text_file"] and given["chat_template"] != "auto":
        raise click.UsageError("--chat-template has no effect with --text; leave it out")
    if given["window"] and given["stride"] and given["stride"] >= given["window"]:
        raise click.UsageError(
            f"--stride {given['stride']} must be below --window {given['window']}, so that every token has one before it"
        )


def _candidate(
    folder: Path, kind: str | None, family: str, given: dict[str, Any], several: bool, kinds: bool
) -> Candidate:
    names = ("engine", "group", "kv", "adapter")
    # Windows are measured one by one; requests of tasks are many and short.
    rows = None if given["tasks"] is not None else 1
    options = CommandLineOptions(weights=kind, batch_size=rows, **{name: given[name] for name in names})
    handle = open_backend(folder, family, options)
    if handle.engine == "fused" and not given["kv"]:
        handle = replace(handle, options=replace(handle.options, kv=EXACT))
    show_notes(handle.notes)
    if given["text_file"] and (handle.prefix_lm is not None or not handle.causal):
        raise UnsupportedError(
            f"{folder} reads a prompt in both directions, so only answers have log-probabilities; measure on examples: --data FILE"
        )
    parts = [str(folder)] if several or not kinds else []
    return Candidate(
        " ".join([*parts, *([kind] if kind and kinds else [])]), handle, handle.tokenizer(given["chat_template"])
    )


def _passage(one: Candidate, given: dict[str, Any]) -> Passage:
    """What a model is measured on, in its tokens."""
    from llmctl.data.files.contents import read_text
    from llmctl.infer.perplexity.windows import answer_windows, text_windows

    positions = one.handle.positions
    if given["data_file"]:
        return answer_windows(*_examples(given["data_file"], one, positions or WINDOW))
    window = given["window"] or min(positions or WINDOW, WINDOW)
    if positions and window > positions:
        raise ConfigError(f"--window {window} is over the {positions} positions of {one.name}")
    return text_windows(one.tokenizer, read_text(given["text_file"]), window, given["stride"] or max(1, window // 2))


def _examples(path: Path, one: Candidate, longest: int) -> tuple[list[Any], int]:
    """Examples that fit, encoded, and the bytes of their answers."""
    from llmctl.data.files import find_files
    from llmctl.data.reading import read_files, way_out
    from llmctl.data.sft.encoding import Encoder
    from llmctl.data.sft.examples import ExampleReader
    from llmctl.errors import DataError

    reader = ExampleReader()
    examples, _ = read_files(find_files(path, "dev").files, reader, "evaluation", remedy=way_out())
    rows = list(map(Encoder(one.tokenizer, longest, longest, option="--chat-template").encode, examples))
    fitting = [index for index, row in enumerate(rows) if row is not None and not row.truncated]
    kept = [rows[index] for index in fitting]
    if len(kept) < len(rows):
        click.echo(
            f"{len(rows) - len(kept)} of {len(rows)} examples have more than {longest} tokens and are left out",
            err=True,
        )
    if not kept:
        raise DataError(f"{path}: no example has at most {longest} tokens, the positions of {one.name}")
    said = [message for index in fitting for message in examples[index].conversation.messages]
    return kept, sum(len(message.text.encode()) for message in said if message.is_answer and message.train)


def _evaluate(candidates: Sequence[Candidate], passages: Sequence[Passage]) -> list[tuple[Measures, bool, float]]:
    """For each model its measures, whether it was compared with the first, and the seconds that it took."""
    from llmctl.infer.perplexity.measure import compare, measure
    from llmctl.io.progress import Progress

    comparable = [
        passage.windows == passages[0].windows and one.handle.vocab == candidates[0].handle.vocab
        for one, passage in zip(candidates, passages, strict=True)
    ]
    together = [index for index, same in enumerate(comparable) if same] if sum(comparable) > 1 else []
    rows: dict[int, tuple[Measures, bool, float]] = {}
    tokens = sum(len(window.scored) for passage in passages for window in passage.windows)
    with Progress("evaluating", tokens) as progress:
        if together:
            started = time.monotonic()
            with contextlib.ExitStack() as stack:
                backends = [_load(candidates[index], passages[0], stack).backend for index in together]
                found = compare(backends, passages[0], candidates[0].handle.vocab, progress)
            seconds = time.monotonic() - started
            rows = {index: (measures, True, seconds) for index, measures in zip(together, found, strict=True)}
        for index, (one, passage) in enumerate(zip(candidates, passages, strict=True)):
            if index not in rows:
                started = time.monotonic()
                with contextlib.ExitStack() as stack:
                    measures = measure(_load(one, passage, stack).backend, passage, progress)
                rows[index] = measures, False, time.monotonic() - started
    first = candidates[0]
    for one, same, passage in zip(candidates, comparable, passages, strict=True):
        if not same:
            why = "it cuts the text into other tokens than"
            if passage.windows == passages[0].windows:
                why = f"its vocabulary of {one.handle.vocab:,} is not that of"
            click.echo(f"KL is left out for {one.name}: {why} {first.name}", err=True)
    return [rows[index] for index in range(len(candidates))]


def _load(one: Candidate, passage: Passage, stack: contextlib.ExitStack) -> LoadedEngine:
    loaded = one.handle.load(one.tokenizer, [max(len(window.ids) for window in passage.windows)])
    stack.callback(loaded.backend.close)
    show_notes(loaded.notes)
    return loaded


def _facts(one: Candidate, measures: Measures, compared: bool, seconds: float) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "model": one.name,
        "engine": one.handle.engine,
        "tokens": measures.tokens,
        "loss": measures.loss,
        "perplexity": measures.perplexity,
        "bits_per_byte": measures.bits_per_byte,
    }
    if compared:
        facts.update(kl=measures.divergence, same_top=measures.agreement)
    return {**facts, "seconds": round(seconds, 2)}


def _print(candidates: Sequence[Candidate], rows: Sequence[tuple[Measures, bool, float]]) -> None:
    from llmctl.train.console import STDOUT

    sized, compared = any(row[0].size for row in rows), any(row[1] for row in rows)
    columns = [
        "model",
        "tokens",
        "loss",
        "perplexity",
        *(["bits/byte"] if sized else []),
        *(["KL", "same top"] if compared else []),
    ]
    table = []
    for one, (measures, one_compared, _) in zip(candidates, rows, strict=True):
        cells = [one.name, f"{measures.tokens:,}", f"{measures.loss:.4f}", f"{measures.perplexity:.4f}"]
        if sized:
            cells.append(f"{measures.bits_per_byte:.4f}")
        if compared:
            cells += [f"{measures.divergence:.2e}", f"{100 * measures.agreement:.1f} %"] if one_compared else ["", ""]
        table.append(cells)
    STDOUT.table("", columns, table)
