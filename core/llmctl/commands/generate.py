"""``llmctl generate``: text from prompts, a file or a conversation. Everything that can be checked is checked first."""

from __future__ import annotations

import io
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmctl.commands.engine_options import engine_options, search_options
from llmctl.errors import ConfigError, DataError
from llmctl.infer.request import BeamOptions
from llmctl.infer.sampling import SamplingParams
from llmctl.infer.select import Chosen, choose

if TYPE_CHECKING:
    from llmctl.infer.journal import Journal
    from llmctl.infer.text import Ask, Writer

SAMPLING = ("temperature", "top_k", "top_p", "min_p")


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@engine_options
@search_options
@click.option("--adapter", "adapters", multiple=True, metavar="[NAME=]FOLDER",
              help="LoRA adapter or prefix for MODEL. Repeat with names to let each line of --input choose by its key `adapter` (fused).")  # fmt: skip
@click.option(
    "--base", type=click.Path(path_type=Path), help="If MODEL is an adapter: folder of its base model, if it has moved."
)
@click.option("--allow-other-base", is_flag=True, help="Allow an adapter on a model that it was not trained on.")
@click.option("--prompt", "prompts", multiple=True, help="Prompt; may be repeated. - reads standard input.")
@click.option("--input", "input_file", type=click.Path(path_type=Path), help="JSON lines file of prompts (key src).")
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
def command(ctx: click.Context, /, model: Path, **given: Any) -> None:
    """Generate text with the model in the folder MODEL.

    MODEL may also hold an adapter, which is applied to its base model, or the result of llmctl export.
    """
    _check_sources(given)
    options = _options(given)
    from llmctl import tokenizers

    chosen = choose(model, ctx.obj["family"], given)
    tokenizer = tokenizers.load(chosen.folder, "none" if given["raw"] else given["chat_template"], chosen.wording)
    tokenizers.check_fits(tokenizer, chosen.vocab, chosen.folder)
    if tokenizer.chat_template is None and given["system"] is not None:
        raise ConfigError("--system needs a chat template; name one with --chat-template")
    if chosen.adapters and not given["input_file"] and any("=" in text for text in given["adapters"]):
        raise ConfigError("--adapter NAME=FOLDER needs --input, whose lines choose; for one adapter leave out its name")
    questions, prompts = _prompts(given, tokenizer)
    asks = _asks(questions, prompts, chosen)
    with _journal(model, given, len(prompts)) as journal:
        writer = _writer(chosen, tokenizer, options, prompts, given)
        if given["chat"]:
            _chat(writer, given["system"])
        elif questions:
            ctx.exit(_file(writer, questions, asks, journal))
        else:
            ctx.exit(_show(writer, given["prompts"], prompts, given["stream"]))


def _writer(
    chosen: Chosen, tokenizer: Any, options: SamplingParams, prompts: list[list[int]], given: dict[str, Any]
) -> Writer:
    """What answers, loaded now."""
    from llmctl.infer.text import Writer, check_lengths

    lengths = [len(prompt) + options.max_new_tokens for prompt in prompts]
    runner, limit = chosen.load(tokenizer, lengths)
    if not given["input_file"]:
        check_lengths(prompts, options, limit)
    beams = None
    if given["beams"]:
        penalty = 1.0 if given["length_penalty"] is None else given["length_penalty"]
        beams = BeamOptions(beams=given["beams"], length_penalty=penalty)
    return Writer(runner, tokenizer, limit, options, given["stops"], given["speculate"] or 0, beams)


def _journal(model: Path, given: dict[str, Any], count: int) -> AbstractContextManager[Any]:
    """Where answers to a file are kept until all are there; None where they are not written to a file."""
    if not given["output_file"]:
        return nullcontext()
    from llmctl.infer.journal import Journal
    from llmctl.io.digest import sha256

    shown = {name: value for name, value in given.items() if name not in ("output_file", "input_file", "stream")}
    about = {
        "model": str(model.resolve()), "input": sha256(given["input_file"]), "questions": count,
        **{name: [str(part) for part in value] if isinstance(value, tuple) else value if value is None else str(value)
           for name, value in shown.items()},
    }  # fmt: skip
    return Journal(given["output_file"], about)


def _asks(questions: list[Any], prompts: list[list[int]], chosen: Chosen) -> list[Ask]:
    """What is asked of the model for each question.

    Raises:
        DataError: A line names an adapter that was not given.
    """
    from llmctl.infer.text import Ask

    asks = []
    for index, (question, prompt) in enumerate(zip(questions, prompts, strict=False)):
        name = question.row.get("adapter")
        if name is not None and name not in chosen.adapters:
            known = ", ".join(chosen.adapters) or "none"
            raise DataError(
                f"{question.source} asks for the adapter {name!r}; given are: {known} (--adapter NAME=FOLDER)"
            )
        asks.append(Ask(prompt, index, -1 if name is None else chosen.adapters.index(name)))
    return asks


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
    if given["length_penalty"] is not None and not given["beams"]:
        raise click.UsageError("--length-penalty has no effect without --beams")
    beamless = [name for name in ("sample", "speculate", "stops", "chat") if given[name]]
    if given["beams"] and (beamless or given["logprobs"] is not None):
        raise click.UsageError("--beams goes without --sample, --speculate, --stop, --logprobs and --chat")
    if "" in given["stops"]:
        raise ConfigError("--stop must not be empty")


def _check_files(source: Path | None, target: Path | None) -> None:
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


def _options(given: dict[str, Any]) -> SamplingParams:
    idle = [f"--{name.replace('_', '-')}" for name in SAMPLING if given[name] is not None and not given["sample"]]
    if idle:
        raise ConfigError(f"{', '.join(idle)} has no effect without --sample; add it, or leave it out")
    names = (
        "max_new_tokens", "min_new_tokens", "sample", "repetition_penalty", "presence_penalty", "frequency_penalty",
        "seed", "logprobs", *SAMPLING,
    )  # fmt: skip
    return SamplingParams(**{name: given[name] for name in names if given[name] is not None})


def _prompts(given: dict[str, Any], tokenizer: Any) -> tuple[list[Any], list[list[int]]]:
    """Questions of the file, if there is one; token ids of all prompts."""
    from llmctl.data.sft.encoding import prompt_ids
    from llmctl.infer.session import read_questions
    from llmctl.tokenizers.base import Conversation

    if given["input_file"]:
        questions = read_questions(given["input_file"], given["system"])
        prompts = [prompt_ids(tokenizer, question.conversation, question.source) for question in questions]
        return questions, prompts
    texts = [_read_stdin() if text == "-" else _checked(text, "--prompt") for text in given["prompts"]]
    talks = [Conversation(((text, None),), given["system"]) for text in texts]
    return [], [prompt_ids(tokenizer, talk) for talk in talks]


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


def _show(writer: Writer, texts: tuple[str, ...], prompts: list[list[int]], stream: bool) -> int:
    """Prints the answers; the exit code."""
    if len(prompts) == 1 and stream and not writer.beams:
        answers = writer.answer(prompts, lambda _, piece: click.echo(piece, nl=False))
        click.echo()
    else:
        answers = writer.answer(prompts)
        for text, answer in zip(texts, answers, strict=True):
            click.echo(f"{text}\n-> {answer.text}\n" if len(prompts) > 1 else answer.text)
    for number, answer in enumerate(answers, 1):
        if answer.finish_reason == "error":
            click.echo(f"error: prompt {number}: {answer.error}", err=True)
    return 1 if any(answer.finish_reason == "error" for answer in answers) else 0


def _file(writer: Writer, questions: list[Any], asks: list[Ask], journal: Journal | None) -> int:
    """Writes a line for each question, in order; the exit code."""
    from llmctl.infer.journal import line
    from llmctl.infer.session import answer_rows

    rows: dict[int, dict[str, Any]] = {} if journal is None else journal.rows
    if rows:
        click.echo(
            f"going on after {len(rows)} of {len(questions)} answers ({journal.path if journal else ''})", err=True
        )
    progress, told = Progress(len(questions), len(rows)), 0
    for place, row in answer_rows(writer, questions, asks, set(rows)):
        if journal is not None:
            journal.add(place, row)
        rows[place] = row
        progress.add()
        while journal is None and told in rows:
            click.echo(line(rows[told]), nl=False)
            told += 1
    failed = sum("error" in row for row in rows.values())
    if journal is not None:
        journal.finish()
        click.echo(f"{len(questions)} answers in {journal.output}")
    if failed:
        click.echo(f"{failed} of {len(questions)} could not be answered; their lines have the field error", err=True)
    return 1 if failed else 0


class Progress:
    """Says on standard error how many answers there are, once in a second.

    Args:
        total: Questions.
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


def _chat(writer: Any, system: str | None) -> None:
    from llmctl.infer.session import Chat

    if writer.tokenizer.chat_template is None:
        click.echo("The model has no chat template: each question stands alone.", err=True)

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

    Chat(writer, system, ask, lambda piece: click.echo(piece, nl=False)).run()
