"""``llmctl generate``: text from prompts, a file or a conversation. Everything that can be checked is checked first."""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmctl.commands.engine_options import adapters_of, engine_options, options_of, search_options, show_notes
from llmctl.commands.model_option import model_option
from llmctl.config.finetune import FORMATS
from llmctl.errors import ConfigError, DataError, LlmctlError, TokenizerError
from llmctl.infer.options import EngineOptions
from llmctl.infer.sampling import SAMPLE_ONLY, SamplingParams
from llmctl.infer.select import open_backend

if TYPE_CHECKING:
    from llmctl.infer.handle import EngineHandle
    from llmctl.infer.text.generator import TextGenerator, TextRequest
    from llmctl.infer.text.prompt_file import PromptLine
    from llmctl.infer.text.resumable_output import ResumableOutput
    from llmctl.tokenizers import Tokenizer

STDIN = Path("-")
"""The file of ``--input`` that is standard input."""


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@model_option("The same as MODEL; or the family of the model.")
@engine_options
@search_options
@click.option("--adapter", "adapters", multiple=True, metavar="[NAME=]FOLDER",
              help="LoRA adapter or prefix for MODEL. Repeat with names to let each line of --input choose by its key `adapter` (fused).")  # fmt: skip
@click.option(
    "--base", type=click.Path(path_type=Path), help="If MODEL is an adapter: folder of its base model, if it has moved."
)
@click.option("--allow-other-base", is_flag=True, help="Allow an adapter on a model that it was not trained on.")
@click.option("--prompt", "prompts", multiple=True, help="Prompt; may be repeated. - reads standard input.")
@click.option(
    "--input",
    "input_file",
    type=click.Path(path_type=Path),
    help="File of prompts, in any format of examples. - reads standard input.",
)
@click.option(
    "--format",
    "data_format",
    type=click.Choice(FORMATS),
    default="auto",
    show_default=True,
    help="Format of --input; auto = recognised by the keys of each line.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="THEIRS=OURS",
    help="A key of --input that has another name in the format; may be repeated.",
)
@click.option("--output", "output_file", type=click.Path(path_type=Path), help="File for the answers to --input.")
@click.option("--chat", is_flag=True, help="Chat in the terminal: /reset clears the history, /quit exits.")
@click.option("--system", help="System prompt.")
@click.option(
    "--chat-template",
    default="auto",
    show_default=True,
    help="auto (the model's own), family, none, or a file or folder.",
)
@click.option("--raw", is_flag=True, help="Do not apply the chat template: continue the prompt as text.")
@click.option("--max-new-tokens", type=int, default=128, show_default=True, help="Maximum number of new tokens.")
@click.option("--min-new-tokens", type=int, default=0, show_default=True, help="Minimum number of new tokens.")
@click.option("--sample/--greedy", default=False, help="Sample, or greedy decoding (the default).")
@click.option("--temperature", type=float, help="With --sample: softmax temperature. [default: 1.0]")
@click.option("--top-k", type=int, help="With --sample: keep the k most likely tokens. [default: 0, all]")
@click.option("--top-p", type=float, help="With --sample: nucleus sampling with this probability mass. [default: 1.0]")
@click.option("--min-p", type=float,
              help="With --sample: drop tokens below this fraction of the highest probability. [default: 0]")  # fmt: skip
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True,
              help="Above 1: makes tokens of prompt and answer less likely.")  # fmt: skip
@click.option(
    "--presence-penalty",
    type=float,
    default=0.0,
    show_default=True,
    help="Subtracted from the logits of tokens that the answer contains.",
)
@click.option(
    "--frequency-penalty",
    type=float,
    default=0.0,
    show_default=True,
    help="Subtracted from the logits of tokens for each time that the answer contains them.",
)
@click.option("--logprobs", type=click.IntRange(0), metavar="N",
              help="With --input: return log-probabilities of each token and of the N most likely ones.")  # fmt: skip
@click.option("--stop", "stops", multiple=True, help="Stop string; may be repeated.")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed of sampling.")
@click.option("--batch-size", type=click.IntRange(1), help="Prompts in a batch. [default: 8; fused 64]")
@click.option("--stream/--no-stream", default=True, help="Print the answer as it is generated (with a single prompt).")
@click.option("--no-cache", is_flag=True, help="Do not use the KV cache: recompute all tokens at every step.")
@click.pass_context
def command(ctx: click.Context, /, model: Path | None, **given: Any) -> None:
    """Generate text with the model in the folder MODEL.

    MODEL may also be the output folder of a training run, hold an adapter, which is applied to its base model, or be the result of
    llmctl export.
    """
    folder = ctx.obj.folder_or(model)
    _check_sources(given)
    name = None
    params = _params(given)
    options = options_of(given, adapter=adapters_of(given["adapters"]))
    handle = open_backend(folder, ctx.obj.family, options)
    show_notes(handle.notes)
    tokenizer = handle.tokenizer("none" if given["raw"] else given["chat_template"])
    if tokenizer.chat_template is None and given["system"] is not None:
        raise ConfigError("--system needs a chat template; name one with --chat-template")
    if options.named_adapters and not given["input_file"]:
        raise ConfigError("--adapter NAME=FOLDER needs --input, whose lines choose; for one adapter leave out its name")
    if given["input_file"] == STDIN:
        given["input_file"] = ctx.with_resource(_stdin_file())
        name = "standard input"
    lines, prompts = _prompts(given, tokenizer, name)
    requests = _requests(lines, prompts, params, handle)
    with _output(folder, given, len(prompts)) as output:
        generator = _generator(handle, tokenizer, requests, options)
        if given["chat"]:
            _chat(generator, params, given["system"])
        elif lines:
            ctx.exit(_file(generator, lines, requests, output))
        else:
            ctx.exit(_show(generator, given["prompts"], requests, given["stream"]))


def _generator(
    handle: EngineHandle, tokenizer: Tokenizer, requests: list[TextRequest], options: EngineOptions
) -> TextGenerator:
    """The engine, loaded, with a cache for the requests; without requests for a conversation of any length."""
    from llmctl.infer.text.generator import generator_of

    lengths = [len(request.prompt) + request.params.max_new_tokens for request in requests if not request.refused]
    loaded = handle.load(tokenizer, lengths or [None])
    show_notes(loaded.notes)
    return generator_of(loaded.backend, loaded.max_positions, tokenizer, options)


def _output(model: Path, given: dict[str, Any], count: int) -> AbstractContextManager[ResumableOutput | None]:
    """Where answers to a file are kept until all are there; None where they are not written to a file."""
    if not given["output_file"]:
        return nullcontext()
    from llmctl.infer.text.resumable_output import ResumableOutput
    from llmctl.io.digest import sha256

    shown = {name: value for name, value in given.items() if name not in ("output_file", "input_file", "stream")}
    settings = {
        "model": str(model.resolve()), "input": sha256(given["input_file"]), "questions": count,
        **{name: [str(part) for part in value] if isinstance(value, tuple) else value if value is None else str(value)
           for name, value in shown.items()},
    }  # fmt: skip
    return ResumableOutput(given["output_file"], settings)


def _requests(
    lines: list[PromptLine], prompts: list[list[int] | LlmctlError], params: SamplingParams, handle: EngineHandle
) -> list[TextRequest]:
    """A request for each prompt.

    Raises:
        DataError: A line names an adapter that was not given.
    """
    from llmctl.infer.text.generator import TextRequest

    adapters = [-1] * len(prompts)
    for index, line in enumerate(lines):
        name = line.row.get("adapter")
        if name is not None and name not in handle.adapters:
            known = ", ".join(handle.adapters) or "none"
            raise DataError(f"{line.source} asks for the adapter {name!r}; given are: {known} (--adapter NAME=FOLDER)")
        adapters[index] = -1 if name is None else handle.adapters.index(name)
    return [
        TextRequest([], params, index, adapters[index], str(prompt))
        if isinstance(prompt, LlmctlError)
        else TextRequest(prompt, params, index, adapters[index])
        for index, prompt in enumerate(prompts)
    ]


def _check_sources(given: dict[str, Any]) -> None:
    chosen = [name for name in ("prompts", "input_file", "chat") if given[name]]
    if len(chosen) != 1:
        raise click.UsageError("give one of --prompt, --input and --chat")
    if given["output_file"] and not given["input_file"]:
        raise click.UsageError("--output needs --input")
    _check_files(given["input_file"], given["output_file"])
    if given["raw"] and (given["chat"] or given["chat_template"] != "auto"):
        raise click.UsageError("--raw excludes --chat and --chat-template")
    if given["chat"] and given["batch_size"]:
        raise click.UsageError("--batch-size has no effect with --chat; leave it out")
    if given["prompts"].count("-") > 1:
        raise click.UsageError("standard input can be only one prompt; give --prompt - once")
    if given["logprobs"] is not None and not given["input_file"]:
        raise click.UsageError("--logprobs needs --input, whose answers have a place for them")
    if (given["columns"] or given["data_format"] != "auto") and not given["input_file"]:
        raise click.UsageError("--format and --column need --input")
    beamless = [name for name in ("sample", "speculate", "stops", "chat") if given[name]]
    if given["beams"] and (beamless or given["logprobs"] is not None):
        raise click.UsageError("--beams goes without --sample, --speculate, --stop, --logprobs and --chat")


def _check_files(source: Path | None, target: Path | None) -> None:
    source = None if source == STDIN else source
    if target and target.is_dir():
        raise ConfigError(f"--output {target} is a folder; name a file")
    if target and target.exists() and not target.is_file():
        raise ConfigError(f"--output {target} is a device or a pipe; name a file, or leave it out to see the answers")
    if source and not source.exists():
        raise ConfigError(f"--input {source}: there is no such file")
    if source and not source.is_file():
        raise ConfigError(f"--input {source} is no regular file; name a file of JSON lines")
    if source and target and target.exists() and target.samefile(source):
        raise ConfigError(f"--output {target} is the file of --input, which would be lost; name another file")


def _params(given: dict[str, Any]) -> SamplingParams:
    idle = [f"--{name.replace('_', '-')}" for name in SAMPLE_ONLY if given[name] is not None and not given["sample"]]
    if idle:
        raise ConfigError(f"{', '.join(idle)} has no effect without --sample; add it, or leave it out")
    if "" in given["stops"]:
        raise ConfigError("--stop must not be empty")
    names = (
        "max_new_tokens", "min_new_tokens", "sample", "repetition_penalty", "presence_penalty", "frequency_penalty",
        "seed", "logprobs", *SAMPLE_ONLY,
    )  # fmt: skip
    values = {name: given[name] for name in names if given[name] is not None}
    return SamplingParams(**values, stop=given["stops"])


def _prompts(
    given: dict[str, Any], tokenizer: Tokenizer, name: str | None
) -> tuple[list[PromptLine], list[list[int] | LlmctlError]]:
    """Lines of the file, if there is one; token ids of all prompts, or why a line has none."""
    from llmctl.data.formats import PROMPTS, Reader, chosen_formats, columns_of
    from llmctl.data.sft.encoding import prompt_ids
    from llmctl.infer.text.prompt_file import read_prompts
    from llmctl.tokenizers.conversation import Conversation

    if given["input_file"]:
        reader = Reader(chosen_formats(PROMPTS, given["data_format"]), columns_of(given["columns"], "--column"))
        lines = read_prompts(given["input_file"], given["system"], reader, name)
        for note in (reader.summary(), *(f"warning: {warning}" for warning in reader.warnings())):
            click.echo(note, err=True)
        return lines, [_line_ids(tokenizer, line) for line in lines]
    texts = [_read_stdin() if text == "-" else _checked(text, "--prompt") for text in given["prompts"]]
    talks = [Conversation(((text, None),), given["system"]) for text in texts]
    return [], [prompt_ids(tokenizer, talk) for talk in talks]


def _line_ids(tokenizer: Tokenizer, line: PromptLine) -> list[int] | LlmctlError:
    """Token ids of a line, or why its chat template refuses it."""
    from llmctl.data.sft.encoding import prompt_ids

    try:
        return prompt_ids(tokenizer, line.conversation, line.source)
    except TokenizerError as error:
        return error


@contextmanager
def _stdin_file() -> Iterator[Path]:
    """A file with the bytes of standard input."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stdin"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield path


def _read_stdin() -> str:
    """Standard input without its last line break."""
    text = sys.stdin.buffer.read().decode("utf-8", errors="surrogateescape")
    return _checked(text, "standard input").removesuffix("\n")


def _checked(text: str, where: str) -> str:
    """The text, if its bytes were valid UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where} is not valid UTF-8; convert it, e.g. with iconv") from None
    return text


def _show(generator: TextGenerator, texts: tuple[str, ...], requests: list[TextRequest], stream: bool) -> int:
    """Prints the answers; returns the exit code."""
    if len(requests) == 1 and stream and not generator.beams:
        outputs = generator.generate(requests, lambda _, piece: click.echo(piece, nl=False))
        click.echo()
    else:
        outputs = generator.generate(requests)
        for text, output in zip(texts, outputs, strict=True):
            click.echo(f"{text}\n-> {output.text}\n" if len(requests) > 1 else output.text)
    for number, output in enumerate(outputs, 1):
        if output.finish_reason == "error":
            click.echo(f"error: prompt {number}: {output.error}", err=True)
    return 1 if any(output.finish_reason == "error" for output in outputs) else 0


def _file(
    generator: TextGenerator, lines: list[PromptLine], requests: list[TextRequest], output: ResumableOutput | None
) -> int:
    """Writes a line for each line of the file, in order; returns the exit code."""
    from llmctl.infer.text.prompt_file import answer_rows
    from llmctl.infer.text.resumable_output import line

    rows: dict[int, dict[str, Any]] = {} if output is None else output.rows
    if output is not None and rows:
        click.echo(f"continuing after {len(rows)} of {len(lines)} answers ({output.path})", err=True)
    progress, shown = Progress(len(lines), len(rows)), 0
    for index, row in answer_rows(generator, lines, requests, set(rows)):
        if output is not None:
            output.add(index, row)
        rows[index] = row
        progress.add()
        while output is None and shown in rows:
            click.echo(line(rows[shown]), nl=False)
            shown += 1
    failed = sum("error" in row for row in rows.values())
    if output is not None:
        output.finish()
        click.echo(f"{len(lines)} answers in {output.output}")
    if failed:
        click.echo(f"{failed} of {len(lines)} could not be answered; their lines have the field error", err=True)
    return 1 if failed else 0


class Progress:
    """Prints on standard error how many answers there are, once a second.

    Args:
        total: Prompts.
        done: Answers so far.
    """

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self._next = total, done, 0.0

    def add(self) -> None:
        """One more."""
        self.done += 1
        now = time.monotonic()
        if now >= self._next or self.done == self.total:
            self._next = now + 1
            click.echo(f"{self.done}/{self.total} answered", err=True)


def _chat(generator: TextGenerator, params: SamplingParams, system: str | None) -> None:
    from llmctl.infer.text.chat import Chat

    if generator.tokenizer.chat_template is None:
        click.echo("The model has no chat template: each message is answered without the ones before it.", err=True)

    if isinstance(sys.stdin, io.TextIOWrapper):
        # So that bytes which are no text are seen by _checked.
        sys.stdin.reconfigure(errors="surrogateescape")

    def ask() -> str | None:
        while True:
            try:
                return _checked(input("> "), "the message")
            except EOFError:
                return None
            except DataError as error:
                click.echo(error, err=True)

    Chat(generator, params, system, ask, lambda piece: click.echo(piece, nl=False)).run()
