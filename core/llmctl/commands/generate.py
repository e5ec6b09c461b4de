"""``llmctl generate``: text from prompts, a file or a conversation. Everything that can be checked is checked first."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from llmctl.commands.model_source import adapter_options, open_model
from llmctl.errors import ConfigError, DataError
from llmctl.infer.sampling import SamplingOptions

SAMPLING = ("temperature", "top_k", "top_p")


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--engine", type=click.Choice(["auto", "dynamic", "static"]), default="auto", show_default=True,
              help="What computes: the layer, or the program in MODEL.")  # fmt: skip
@adapter_options
@click.option("--prompt", "prompts", multiple=True, help="A prompt; may be repeated. - reads one from standard input.")
@click.option("--input", "input_file", type=click.Path(path_type=Path), help="JSON lines with src.")
@click.option("--output", "output_file", type=click.Path(path_type=Path), help="Where to write the answers to --input.")
@click.option("--chat", is_flag=True, help="Talk: /reset forgets, /quit leaves.")
@click.option("--system", help="System text for the chat template.")
@click.option("--chat-template", default="auto", show_default=True, help="auto, family, none, or a file or folder.")
@click.option("--raw", is_flag=True, help="Continue prompts as they are, without the chat template.")
@click.option("--max-new-tokens", type=int, default=128, show_default=True)
@click.option("--min-new-tokens", type=int, default=0, show_default=True)
@click.option("--sample/--greedy", default=False, help="Draw tokens, or take the likeliest (the default).")
@click.option("--temperature", type=float, help="With --sample: below 1 is sharper. [default: 1.0]")
@click.option("--top-k", type=int, help="With --sample: only the k likeliest tokens. [default: 0, all]")
@click.option("--top-p", type=float, help="With --sample: only the likeliest with this probability. [default: 1.0]")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True)
@click.option("--stop", "stops", multiple=True, help="Text that ends an answer; may be repeated.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), help="Prompts answered together. [default: 8]")
@click.option("--stream/--no-stream", default=True, help="Show an answer while it grows (a single prompt only).")
@click.option("--no-cache", is_flag=True, help="Compute every step from the beginning, to check the cache.")
@click.pass_context
def command(ctx: click.Context, /, model: Path, **given: Any) -> None:
    """Generate text with the model in the folder MODEL, or with the adapter in it and the model that it names."""
    _check_sources(given)
    options = _options(given)
    from llmctl import tokenizers

    if _engine(model, given["engine"]) == "static":
        card, folder, vocab, load = _program(model, given)
    else:
        card, folder, vocab, load = _checkpoint(model, given, ctx.obj["family"])
    tokenizer = tokenizers.load(folder, "none" if given["raw"] else given["chat_template"], card)
    tokenizers.check_fits(tokenizer, vocab, folder)
    if tokenizer.chat_template is None and given["system"] is not None:
        raise ConfigError("--system needs a chat template; name one with --chat-template")
    questions, prompts, names = _prompts(given, tokenizer)

    from llmctl import runtime

    runtime.import_paddle("llmctl generate")
    from llmctl.infer.text import Writer, check_lengths

    loaded, limit = load()
    check_lengths(prompts, options, limit, names)
    writer = Writer(loaded, tokenizer, limit, options, given["stops"], given["batch_size"] or 8, not given["no_cache"])
    if given["chat"]:
        _chat(writer, given["system"])
    elif questions:
        _file(writer, questions, prompts, given["output_file"])
    else:
        _show(writer, given["prompts"], prompts, given["stream"])


def _engine(model: Path, asked: str) -> str:
    """The engine that runs a folder.

    Raises:
        ConfigError: The one that was asked for cannot.
    """
    from llmctl.infer.exported import is_exported

    found = "static" if is_exported(model) else "dynamic"
    if asked not in ("auto", found):
        remedy = "leave out --engine" if found == "static" else f"make one: llmctl export {model} --out FOLDER"
        what = "holds an exported program" if found == "static" else "holds no exported program"
        raise ConfigError(f"--engine {asked}: {model} {what}; {remedy}")
    return found


def _program(model: Path, given: dict[str, Any]) -> tuple[Any, Path, int, Any]:
    """As ``_checkpoint``, of an exported program."""
    from llmctl.infer import exported

    idle = [option for option, name in (("--adapter", "adapter"), ("--base", "base")) if given[name]]
    if idle or given["allow_other_base"]:
        raise ConfigError(
            f"{model} is an exported program, which takes no adapter; export the model with its adapter instead"
        )
    about = exported.read(model)

    def load() -> tuple[Any, int]:
        from llmctl.infer.static import StaticModel

        return StaticModel(model, about), about.max_positions

    return about.wording, model, about.vocab, load


def _checkpoint(model: Path, given: dict[str, Any], family: str) -> tuple[Any, Path, int, Any]:
    """The card, the folder of the tokenizer, the vocabulary, and what loads the model and gives its longest rows."""
    source = open_model(model, family, given["adapter"], given["base"], given["allow_other_base"])

    def load() -> tuple[Any, int]:
        from llmctl.infer.text import longest

        layer = source.layer()
        return layer, longest(layer, source.dims)

    return source.plugin.card, source.tokenizer_folder, source.dims.vocab, load


def _check_sources(given: dict[str, Any]) -> None:
    chosen = [name for name in ("prompts", "input_file", "chat") if given[name]]
    if len(chosen) != 1:
        raise click.UsageError("give one of --prompt, --input and --chat")
    if given["output_file"] and not given["input_file"]:
        raise click.UsageError("--output needs --input")
    if given["output_file"] and given["output_file"].is_dir():
        raise ConfigError(f"--output {given['output_file']} is a folder; name a file")
    if given["input_file"] and not given["input_file"].is_file():
        raise ConfigError(f"--input {given['input_file']}: there is no such file")
    if given["raw"] and (given["chat"] or given["chat_template"] != "auto"):
        raise click.UsageError("--raw excludes --chat and --chat-template")
    if given["chat"] and given["batch_size"]:
        raise click.UsageError("--batch-size has no effect with --chat; leave it out")
    if given["prompts"].count("-") > 1:
        raise click.UsageError("standard input can be only one prompt; give --prompt - once")
    if "" in given["stops"]:
        raise ConfigError("--stop must not be empty")


def _options(given: dict[str, Any]) -> SamplingOptions:
    idle = [f"--{name.replace('_', '-')}" for name in SAMPLING if given[name] is not None and not given["sample"]]
    if idle:
        raise ConfigError(f"{', '.join(idle)} has no effect without --sample; add it, or leave it out")
    names = ("max_new_tokens", "min_new_tokens", "sample", "repetition_penalty", "seed", *SAMPLING)
    return SamplingOptions(**{name: given[name] for name in names if given[name] is not None})


def _prompts(given: dict[str, Any], tokenizer: Any) -> tuple[list[Any], list[list[int]], list[str]]:
    """Questions of the file, if there is one; token ids of all prompts; their names in messages."""
    from llmctl.data.encoding import prompt_ids
    from llmctl.infer.session import read_questions
    from llmctl.tokenizers.chat import Conversation

    if given["input_file"]:
        questions = read_questions(given["input_file"], given["system"])
        prompts = [prompt_ids(tokenizer, question.conversation, question.source) for question in questions]
        return questions, prompts, [question.source for question in questions]
    texts = [_read_stdin() if text == "-" else _checked(text, "--prompt") for text in given["prompts"]]
    talks = [Conversation(((text, None),), given["system"]) for text in texts]
    return [], [prompt_ids(tokenizer, talk) for talk in talks], []


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


def _show(writer: Any, texts: tuple[str, ...], prompts: list[list[int]], stream: bool) -> None:
    if len(prompts) == 1 and stream:
        writer.answer(prompts, lambda _, piece: click.echo(piece, nl=False))
        click.echo()
        return
    for text, answer in zip(texts, writer.answer(prompts), strict=True):
        if len(prompts) > 1:
            click.echo(f"{text}\n-> {answer.text}\n")
        else:
            click.echo(answer.text)


def _file(writer: Any, questions: list[Any], prompts: list[list[int]], output: Path | None) -> None:
    from llmctl.checkpoint import atomic_file
    from llmctl.infer.session import answer_file

    def progress(done: int) -> None:
        click.echo(f"{done}/{len(questions)} answered", err=True)

    lines = answer_file(writer, questions, prompts, progress)
    if output is None:
        for line in lines:
            click.echo(line, nl=False)
        return
    with atomic_file(output) as path, path.open("w", encoding="utf-8") as stream:
        stream.writelines(lines)
    click.echo(f"{len(questions)} answers in {output}")


def _chat(writer: Any, system: str | None) -> None:
    from llmctl.infer.session import Chat

    if writer.tokenizer.chat_template is None:
        click.echo("The model has no chat template: each question stands alone.", err=True)

    def ask() -> str | None:
        try:
            return input("> ")
        except EOFError:
            return None

    Chat(writer, system, ask, lambda piece: click.echo(piece, nl=False)).run()
