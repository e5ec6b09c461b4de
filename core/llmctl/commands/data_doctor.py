"""``llmctl data doctor``: checks fine-tuning data, and shows it as the model sees it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmctl.commands.model_option import model_option
from llmctl.commands.tokenizer_folder import TokenizerFolder

if TYPE_CHECKING:
    from rich.text import Text

    from llmctl.data.doctor import DoctorReport
    from llmctl.data.sft.encoding import EncodedExample
    from llmctl.tokenizers import Tokenizer

LENGTH = 1024
"""Longest prompt where no option sets it."""


@click.command(name="doctor")
@click.argument("files", nargs=-1, required=True)
@model_option("Model whose tokenizer and chat template are used: a folder, or a name on a hub.")
@click.option("--model-folder", hidden=True, type=TokenizerFolder(), help="The same as --model.")
@click.option("--task", type=click.Choice(["auto", "finetune", "dpo"]), default="auto", show_default=True,
              help="What the data is for; auto = as the first line looks.")  # fmt: skip
@click.option("--format", "data_format", default="auto", show_default=True, help="As data.format.")
@click.option(
    "--column", "columns", multiple=True, metavar="THEIRS=OURS", help="As an entry of data.columns; may be repeated."
)
@click.option("--train-on", type=click.Choice(["all", "last"]), help="As data.train_on. [default: all]")
@click.option("--src-length", type=click.IntRange(1), help="As data.src_length. [default: 1024]")
@click.option("--max-prompt-length", type=click.IntRange(1), help="For dpo: as data.max_prompt_length. [default: 1024]")
@click.option("--max-length", type=click.IntRange(2), default=2048, show_default=True, help="As data.max_length.")
@click.option("--chat-template", default="auto", show_default=True, help="As data.chat_template.")
@click.option(
    "--show", type=click.IntRange(0), default=2, show_default=True, help="Number of examples to show token by token."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, /, files: tuple[str, ...], model_folder: Path | None, **given: Any) -> None:
    """Check fine-tuning or preference data, in any format that llmctl reads.

    FILES are files, patterns, or folders with files to train on. Exits with 1 if there are errors, with 0 if there are only
    warnings.
    """
    from llmctl import plugins, tokenizers

    paths = _files(files)
    task = given["task"] if given["task"] != "auto" else _task(paths[0], given["columns"])
    _check_options(task, given)
    folder = ctx.obj.folder_or(model_folder, "--model", weights=False)
    tokenizer = tokenizers.load(folder, given["chat_template"], plugins.card_of(folder, ctx.obj.family))
    report = _examine(task, paths, tokenizer, given)
    if given["as_json"]:
        click.echo(_json(report, tokenizer, given["show"]))
    else:
        _print(report, tokenizer, given["show"], "pairs" if task == "dpo" else "examples")
    ctx.exit(1 if report.errors else 0)


ONLY = {"finetune": ("src_length", "train_on"), "dpo": ("max_prompt_length",)}
"""What the data is for -> options that have an effect for it only."""


def _files(texts: tuple[str, ...]) -> list[Path]:
    """The files of the arguments; what is left out of folders is named."""
    from llmctl.data.files import find_files, note_of
    from llmctl.jobs.paths import find_paths

    found = [find_files(path, "train") for text in texts for path in find_paths(text, "FILES", None)]
    note = note_of([path for files in found for path in files.left_out], "give it as an argument to check it")
    if note:
        click.echo(note, err=True)
    return [file for files in found for file in files.files]


def _task(file: Path, columns: tuple[str, ...]) -> str:
    """What a file is for, as its first line looks."""
    from llmctl.data.files import records
    from llmctl.data.formats import DPO, columns_of
    from llmctl.data.formats.rows import parse_object

    try:
        row = parse_object(next(records(file), ("", ""))[1])
    except ValueError:
        return "finetune"
    renamed = {columns_of(columns, "--column").get(key, key): value for key, value in row.items()}
    return "dpo" if any(form.fits(renamed) for form in DPO) else "finetune"


def _check_options(task: str, given: dict[str, Any]) -> None:
    from llmctl.config import dpo, finetune

    other = "dpo" if task == "finetune" else "finetune"
    idle = [name for name in ONLY[other] if given[name] is not None]
    if idle:
        raise click.UsageError(
            f"--{idle[0].replace('_', '-')} is for data of {other}, and this is data for {task}; leave it out, or set --task"
        )
    known = (dpo if task == "dpo" else finetune).FORMATS
    if given["data_format"] not in known:
        raise click.UsageError(f"--format {given['data_format']}: formats for {task} are {', '.join(known)}")


def _examine(task: str, files: list[Path], tokenizer: Tokenizer, given: dict[str, Any]) -> DoctorReport:
    from llmctl.data.doctor import preference, read_lines, sft
    from llmctl.data.preference.encoding import PairEncoder
    from llmctl.data.preference.examples import PreferenceReader
    from llmctl.data.sft.encoding import Encoder
    from llmctl.data.sft.examples import ExampleReader
    from llmctl.io.progress import Progress

    reader = (PreferenceReader if task == "dpo" else ExampleReader)(given["data_format"], given["columns"])
    with Progress("reading", sum(file.stat().st_size for file in files)) as progress:
        read = read_lines(files, reader, progress)
    longest = given["max_length"]
    with Progress("checking", len(read.examples)) as progress:
        if task == "dpo":
            encoder = PairEncoder(tokenizer, given["max_prompt_length"] or LENGTH, longest)
            return preference.examine(read, encoder, progress)
        return sft.examine(
            read, Encoder(tokenizer, given["src_length"] or LENGTH, longest, given["train_on"] or "all"), progress
        )


def _json(report: DoctorReport, tokenizer: Tokenizer, show: int) -> str:
    import dataclasses
    import json

    shown = [
        {"source": row.source, "tokens": [{"id": token, "text": text, "loss": loss} for token, text, loss in
                                          _tokens(row, tokenizer)]}
        for row in report.rows[:show]
    ]  # fmt: skip
    findings = [dataclasses.asdict(finding) for finding in report.findings]
    content = {"ok": not report.errors, "examples": report.examples, **report.numbers, "findings": findings}
    return json.dumps({**content, "shown": shown}, indent=1, ensure_ascii=False)


def _print(report: DoctorReport, tokenizer: Tokenizer, show: int, noun: str) -> None:
    from rich.console import Console
    from rich.markup import escape

    # Lines wrap on a terminal, but not in a file.
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    if report.rows[:show]:
        console.print("tokens: [black on green]with loss[/] [dim]without loss[/]; tokens with loss are between « »\n")
    for row in report.rows[:show]:
        console.print(
            f"[bold]{escape(row.source)}[/] ({len(row.input_ids)} tokens{', truncated' if row.truncated else ''})"
        )
        console.print(_view(row, tokenizer), "")
    console.print(f"[bold]{report.examples} {noun}[/]")
    for line in _number_lines(report.numbers):
        console.print(line, markup=False)
    for finding in report.findings:
        color, name = ("red", "error") if finding.error else ("yellow", "warning")
        console.print(f"[{color}]{name}[/] {finding.kind}: {finding.count} {finding.message}")
        for place in finding.places[:10]:
            console.print(f"    {place}", markup=False)
        if len(finding.places) > 10:
            console.print(f"    and {len(finding.places) - 10} more")
    console.print(_verdict(report))


def _verdict(report: DoctorReport) -> str:
    if report.errors:
        return "[red]errors found[/]"
    return "[yellow]no errors; see the warnings[/]" if report.findings else "[green]no errors[/]"


def _number_lines(numbers: dict[str, Any]) -> Iterator[str]:
    for topic, values in numbers.items():
        for name, value in values.items():
            if isinstance(value, dict):
                value = ", ".join(f"{key} {part}" for key, part in value.items())
            yield f"  {topic + ' ' + name:<36} {'none' if value is None else value}"


def _view(row: EncodedExample, tokenizer: Tokenizer) -> Text:
    """Tokens of a row, colored by loss; shades alternate to show where tokens end."""
    from rich.text import Text

    view = Text()
    inside = False
    for number, (_, text, loss) in enumerate(_tokens(row, tokenizer)):
        if loss != inside:
            view.append("«" if loss else "»", "bold")
            inside = loss
        shade = ("black on green", "black on bright_green") if loss else ("dim", "dim underline")
        view.append(text.replace("\n", "⏎\n"), shade[number % 2])
    return view.append("»" if inside else "", "bold")


def _tokens(row: EncodedExample, tokenizer: Tokenizer) -> Iterator[tuple[int, str, bool]]:
    """(id, text, whether it has loss) of each token; a character that spans tokens is shown at the last one."""
    from llmctl.data.sft.encoding import IGNORE_INDEX

    stream = tokenizer.stream(skip_special=False)
    has_loss = [False, *(label != IGNORE_INDEX for label in row.labels[:-1])]
    for index, (token, loss) in enumerate(zip(row.input_ids, has_loss, strict=True)):
        text = stream.add(token)
        if index == len(row.input_ids) - 1:
            text += stream.finish()
        yield token, text, loss
