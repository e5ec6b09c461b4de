"""``llmctl data doctor``: checks fine-tuning data, and shows it as the model sees it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmctl.commands.tokenizer_folder import TokenizerFolder

if TYPE_CHECKING:
    from rich.text import Text

    from llmctl.data.doctor import DoctorReport
    from llmctl.data.sft.encoding import EncodedExample
    from llmctl.tokenizers import Tokenizer


@click.command(name="doctor")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model-folder", required=True, type=TokenizerFolder(),
              help="Model folder, or name on a hub, with the tokenizer and chat template.")  # fmt: skip
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
    """Check fine-tuning data, in any format that llmctl reads.

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


def _print(report: DoctorReport, tokenizer: Tokenizer, show: int) -> None:
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
    console.print(f"[bold]{report.examples} examples[/]")
    for line in _number_lines(report.numbers):
        console.print(line, markup=False)
    for finding in report.findings:
        color, name = ("red", "error") if finding.error else ("yellow", "warning")
        console.print(f"[{color}]{name}[/] {finding.kind}: {len(finding.places)} {finding.message}")
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
