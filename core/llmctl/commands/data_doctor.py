"""``llmctl data doctor``: shows what a model would see of fine-tuning data, and what is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.text import Text

    from llmctl.data.doctor import Report
    from llmctl.data.sft.encoding import Row
    from llmctl.tokenizers import Tokenizer


@click.command(name="doctor")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model-folder", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Model folder with the tokenizer and chat template.")  # fmt: skip
@click.option("--src-length", type=click.IntRange(1), default=1024, show_default=True, help="As data.src_length.")
@click.option("--max-length", type=click.IntRange(2), default=2048, show_default=True, help="As data.max_length.")
@click.option("--chat-template", default="auto", show_default=True, help="As data.chat_template.")
@click.option(
    "--show", type=click.IntRange(0), default=2, show_default=True, help="Number of examples to show token by token."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    files: tuple[Path, ...],
    model_folder: Path,
    src_length: int,
    max_length: int,
    chat_template: str,
    show: int,
    as_json: bool,
) -> None:
    """Check fine-tuning data: JSON lines with src and tgt.

    Exits with 1 if there are errors, with 0 if there are only warnings.
    """
    from llmctl import plugins, tokenizers
    from llmctl.data.doctor import examine
    from llmctl.data.sft.encoding import Encoder

    tokenizer = tokenizers.load(model_folder, chat_template, plugins.card_of(model_folder, ctx.obj["family"]))
    report = examine(files, Encoder(tokenizer, src_length, max_length))
    if as_json:
        click.echo(_json(report, tokenizer, show))
    else:
        _print(report, tokenizer, show)
    ctx.exit(1 if report.errors else 0)


def _json(report: Report, tokenizer: Tokenizer, show: int) -> str:
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


def _print(report: Report, tokenizer: Tokenizer, show: int) -> None:
    from rich.console import Console
    from rich.markup import escape

    # Lines are not to be broken where the output is a file; on a terminal they wrap.
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    if report.rows[:show]:
        console.print("tokens: [black on green]carries loss[/] [dim]seen only[/], between « » what carries loss\n")
    for row in report.rows[:show]:
        console.print(f"[bold]{escape(row.source)}[/] ({len(row.input_ids)} tokens{', cut' if row.truncated else ''})")
        console.print(_view(row, tokenizer), "")
    console.print(f"[bold]{report.examples} examples[/]")
    for line in _number_lines(report.numbers):
        console.print(line, markup=False)
    for finding in report.findings:
        colour, name = ("red", "error") if finding.error else ("yellow", "warning")
        console.print(f"[{colour}]{name}[/] {finding.kind}: {len(finding.places)} {finding.message}")
        for place in finding.places[:10]:
            console.print(f"    {place}", markup=False)
        if len(finding.places) > 10:
            console.print(f"    and {len(finding.places) - 10} more")
    console.print(_verdict(report))


def _verdict(report: Report) -> str:
    if report.errors:
        return "[red]something is wrong[/]"
    return "[yellow]nothing is wrong, but look at the warnings[/]" if report.findings else "[green]nothing is wrong[/]"


def _number_lines(numbers: dict[str, Any]) -> Iterator[str]:
    for topic, values in numbers.items():
        for name, value in values.items():
            if isinstance(value, dict):
                value = ", ".join(f"{key} {part}" for key, part in value.items())
            yield f"  {topic + ' ' + name:<36} {'none' if value is None else value}"


def _view(row: Row, tokenizer: Tokenizer) -> Text:
    """Tokens of a row with their loss in colour, every other one shaded so that borders are seen."""
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


def _tokens(row: Row, tokenizer: Tokenizer) -> Iterator[tuple[int, str, bool]]:
    """Id, text and whether it carries loss of each token; text that spans tokens stands at the last of them."""
    from llmctl.data.sft.encoding import IGNORED

    stream = tokenizer.stream(skip_special=False)
    asked = [False, *(label != IGNORED for label in row.labels[:-1])]
    for index, (token, loss) in enumerate(zip(row.input_ids, asked, strict=True)):
        text = stream.add(token)
        if index == len(row.input_ids) - 1:
            text += stream.finish()
        yield token, text, loss
