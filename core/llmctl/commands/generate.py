"""``llmctl generate``: text from prompts, a file or a conversation. Everything that can be checked is checked first."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmctl.commands.chat import check_system, run_chat
from llmctl.commands.engine_options import adapters_of, engine_options, options_of, search_options
from llmctl.commands.messages import Messages, messages, verbosity
from llmctl.commands.model_option import model_option
from llmctl.commands.sampling_options import NAMES, choose_params, given_params, sampling_options
from llmctl.commands.terminal import checked
from llmctl.config.finetune import FORMATS
from llmctl.errors import ConfigError, DataError, LlmctlError, TokenizerError
from llmctl.infer.options import EngineOptions
from llmctl.infer.sampling import SamplingParams
from llmctl.infer.select import open_backend
from llmctl.io import progress

if TYPE_CHECKING:
    from llmctl.infer.handle import EngineHandle
    from llmctl.infer.text.generator import TextGenerator, TextRequest
    from llmctl.infer.text.prompt_file import PromptLine
    from llmctl.infer.text.resumable_output import ResumableOutput
    from llmctl.tokenizers import Tokenizer

STDIN = Path("-")
"""The file of ``--input`` that is standard input."""

SHORT = 128
"""Tokens of an answer that is worth it to stay within the positions for which RoPE is the same for all lengths."""


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@model_option("The same as MODEL; or the family of the model.")
@engine_options
@search_options
@click.option("--adapter", "adapters", multiple=True, metavar="[NAME=]FOLDER",
              help="LoRA adapter or prefix for MODEL. Repeat with names to let each line of --input choose by its key `adapter` (fused).")  # fmt: skip
@click.option(
    "--base",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="If MODEL is an adapter: folder of its base model, if it has moved.",
)
@click.option("--allow-other-base", is_flag=True, help="Allow an adapter on a model that it was not trained on.")
@click.option("--prompt", "prompts", multiple=True, help="Prompt; may be repeated. - reads standard input.")
@click.option(
    "--input",
    "input_file",
    metavar="FILE",
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
@click.option(
    "--output", "output_file", metavar="FILE", type=click.Path(path_type=Path), help="File for the answers to --input."
)
@click.option("--chat", is_flag=True, help="Chat in the terminal, as llmctl chat does.")
@click.option("--system", help="System prompt.")
@click.option(
    "--chat-template",
    default="auto",
    show_default=True,
    help="auto (the model's own), family, none, or a file or folder.",
)
@click.option("--raw", is_flag=True, help="Do not apply the chat template: continue the prompt as text.")
@sampling_options
@click.option("--logprobs", type=click.IntRange(0), metavar="N",
              help="With --input: return log-probabilities of each token and of the N most likely ones.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), help="Prompts in a batch. [default: 8; fused 64]")
@click.option("--stream/--no-stream", default=True, help="Print the answer as it is generated (with a single prompt).")
@click.option("--no-cache", is_flag=True, help="Do not use the KV cache: recompute all tokens at every step.")
@verbosity
@click.pass_context
def command(ctx: click.Context, /, model: Path | None, **given: Any) -> None:
    """Generate text with the model in the folder MODEL.

    MODEL may also be the output folder of a training run, hold an adapter, which is applied to its base model, be the result of
    llmctl export, a GGUF file, or a name on a hub, such as OWNER/NAME or OWNER/NAME:Q4_K_M.
    """
    folder, say = ctx.obj.folder_or(model), messages(ctx)
    _check_sources(given)
    name, chosen = None, given_params(given)
    options = options_of(given, adapter=adapters_of(given["adapters"]))
    handle = open_backend(folder, ctx.obj.family, options)
    say.notes(handle.notes)
    tokenizer = handle.tokenizer("none" if given["raw"] else given["chat_template"])
    if given["chat"]:
        run_chat(handle, tokenizer, given["system"], chosen, say)
        return
    check_system(tokenizer, given["system"])
    if options.named_adapters and not given["input_file"]:
        raise ConfigError("--adapter NAME=FOLDER needs --input, whose lines choose; for one adapter leave out its name")
    if given["input_file"] == STDIN:
        given["input_file"] = ctx.with_resource(_stdin_file())
        name = "standard input"
    params = choose_params(handle.sampling_defaults(), chosen, say)
    lines, prompts = _prompts(given, tokenizer, name, say)
    requests = _requests(lines, prompts, params, handle, "max_new_tokens" in chosen)
    with _output(folder, given, params, len(prompts)) as output:
        generator = _generator(handle, tokenizer, requests, options, say)
        if lines:
            ctx.exit(_file(generator, lines, requests, output, say))
        else:
            ctx.exit(_show(generator, given["prompts"], requests, given["stream"]))


def _generator(
    handle: EngineHandle, tokenizer: Tokenizer, requests: list[TextRequest], options: EngineOptions, say: Messages
) -> TextGenerator:
    """The engine, loaded, with a cache for the requests."""
    from llmctl.infer.text.generator import generator_of

    lengths = [len(request.prompt) + request.params.max_new_tokens for request in requests if not request.refused]
    loaded = handle.load(tokenizer, lengths or [None])
    say.notes(loaded.notes)
    return generator_of(loaded.backend, loaded.max_positions, tokenizer, options)


def _output(
    model: Path, given: dict[str, Any], params: SamplingParams, count: int
) -> AbstractContextManager[ResumableOutput | None]:
    """Where answers to a file are kept until all are there; None where they are not written to a file."""
    if not given["output_file"]:
        return nullcontext()
    from llmctl.infer.text.resumable_output import ResumableOutput
    from llmctl.io.digest import sha256

    shown = {
        name: value for name, value in given.items() if name not in ("output_file", "input_file", "stream", *NAMES)
    }
    shown |= {name: getattr(params, name) for name in NAMES}
    settings = {
        "model": str(model.resolve()), "input": sha256(given["input_file"]), "questions": count,
        **{name: [str(part) for part in value] if isinstance(value, tuple) else value if value is None else str(value)
           for name, value in shown.items()},
    }  # fmt: skip
    return ResumableOutput(given["output_file"], settings)


def _requests(
    lines: list[PromptLine],
    prompts: list[list[int] | LlmctlError],
    params: SamplingParams,
    handle: EngineHandle,
    exact: bool,
) -> list[TextRequest]:
    """A request for each prompt.

    Args:
        lines: The lines of a file, if there is one.
        prompts: Token ids of the prompts, or why there are none.
        params: How tokens are chosen.
        handle: The engine.
        exact: Whether the length of answers was given; else it is what prompts leave of the model's positions, at most.

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
        else TextRequest(prompt, params if exact else _shortened(params, len(prompt), handle), index, adapters[index])
        for index, prompt in enumerate(prompts)
    ]


def _shortened(params: SamplingParams, prompt: int, handle: EngineHandle) -> SamplingParams:
    """Parameters of an answer that the model has positions for, and whose RoPE the fused engine has, if it is not too short."""
    from llmctl.infer.sampling.defaults import shortened

    fitted, stable = shortened(params, prompt, handle.positions), getattr(handle, "max_stable_length", None)
    return shortened(fitted, prompt, stable) if stable and stable - prompt >= SHORT else fitted


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
    beamless = [name for name in ("sample", "speculate", "stop", "chat") if given[name]]
    if given["beams"] and (beamless or given["logprobs"] is not None):
        raise click.UsageError("--beams cannot be combined with --sample, --speculate, --stop, --logprobs or --chat")


def _check_files(source: Path | None, target: Path | None) -> None:
    source = None if source == STDIN else source
    if target and target.is_dir():
        raise ConfigError(f"--output {target} is a folder; name a file")
    if target and target.exists() and not target.is_file():
        raise ConfigError(f"--output {target} is a device or a pipe; name a file, or leave it out to see the answers")
    if source and not source.exists():
        raise ConfigError(f"--input {source}: there is no such file")
    if source and not source.is_file():
        raise ConfigError(f"--input {source} is not a regular file; name a file of JSON lines")
    if source and target and target.exists() and target.samefile(source):
        raise ConfigError(f"--output {target} is the file of --input, which would be lost; name another file")


def _prompts(
    given: dict[str, Any], tokenizer: Tokenizer, name: str | None, say: Messages
) -> tuple[list[PromptLine], list[list[int] | LlmctlError]]:
    """Lines of the file, if there is one; token ids of all prompts, or why a line has none."""
    from llmctl.data.formats import PROMPTS, Reader, chosen_formats, columns_of
    from llmctl.data.sft.encoding import prompt_ids
    from llmctl.infer.text.prompt_file import read_prompts
    from llmctl.tokenizers.conversation import Conversation

    if given["input_file"]:
        reader = Reader(chosen_formats(PROMPTS, given["data_format"]), columns_of(given["columns"], "--column"))
        lines = read_prompts(given["input_file"], given["system"], reader, name)
        say.note(reader.summary())
        for warning in reader.warnings():
            click.echo(f"warning: {warning}", err=True)
        with progress.Progress("encoding prompts", len(lines)) as done:
            return lines, [_line_ids(tokenizer, line, done) for line in lines]
    texts = [_read_stdin() if text == "-" else checked(text, "--prompt") for text in given["prompts"]]
    talks = [Conversation(((text, None),), given["system"]) for text in texts]
    return [], [prompt_ids(tokenizer, talk) for talk in talks]


def _line_ids(tokenizer: Tokenizer, line: PromptLine, done: progress.Progress) -> list[int] | LlmctlError:
    """Token ids of a line, or why its chat template refuses it."""
    from llmctl.data.sft.encoding import prompt_ids

    done(1)
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
    return checked(text, "standard input").removesuffix("\n")


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
    generator: TextGenerator,
    lines: list[PromptLine],
    requests: list[TextRequest],
    output: ResumableOutput | None,
    say: Messages,
) -> int:
    """Writes a line for each line of the file, in order; returns the exit code."""
    from llmctl.infer.text.prompt_file import answer_rows
    from llmctl.infer.text.resumable_output import line

    rows: dict[int, dict[str, Any]] = {} if output is None else output.rows
    if output is not None and rows:
        say.note(f"continuing after {len(rows)} of {len(lines)} answers ({output.path})")
    progress, shown = Progress(len(lines), len(rows), say), 0
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
        say.note(f"{len(lines)} answers in {output.output}")
    if failed:
        click.echo(f"{failed} of {len(lines)} could not be answered; their lines have the field error", err=True)
    return 1 if failed else 0


class Progress:
    """Prints on standard error how many answers there are, once a second.

    Args:
        total: Prompts.
        done: Answers so far.
        say: Prints notes.
    """

    def __init__(self, total: int, done: int, say: Messages) -> None:
        self.total, self.done, self._say, self._next = total, done, say, 0.0

    def add(self) -> None:
        """One more."""
        self.done += 1
        now = time.monotonic()
        if now >= self._next or self.done == self.total:
            self._next = now + 1
            self._say.note(f"{self.done}/{self.total} answered")
