"""``llmctl chat``: a conversation with a model in the terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmctl.commands.engine_options import adapter_options, engine_options, options_of
from llmctl.commands.messages import Messages, messages, verbosity
from llmctl.commands.model_option import model_option
from llmctl.commands.sampling_options import choose_params, given_params, sampling_options
from llmctl.errors import ConfigError
from llmctl.infer.select import open_backend

if TYPE_CHECKING:
    from llmctl.infer.handle import EngineHandle
    from llmctl.tokenizers import Tokenizer

LONGEST = 1024
"""Tokens of an answer where neither the user nor the model's generation_config.json says how many."""


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@model_option("The same as MODEL; or the family of the model.")
@engine_options
@click.option("--speculate", type=click.IntRange(1), metavar="N",
              help="Speculative decoding by prompt lookup, up to N draft tokens; answers do not change (fused).")  # fmt: skip
@adapter_options
@click.option("--system", help="System prompt.")
@click.option("--chat-template", default="auto", show_default=True,
              help="auto (the model's own), family, none, or a file or folder.")  # fmt: skip
@sampling_options
@verbosity
@click.pass_context
def command(ctx: click.Context, /, model: Path | None, **given: Any) -> None:
    """Chat with the model in the folder MODEL. /help lists what can be typed; Ctrl-D ends the chat.

    MODEL is as for llmctl generate.
    """
    folder, say = ctx.obj.folder_or(model), messages(ctx)
    chosen = given_params(given)
    handle = open_backend(folder, ctx.obj.family, options_of(given))
    say.notes(handle.notes)
    run_chat(handle, handle.tokenizer(given["chat_template"]), given["system"], chosen, say)


def run_chat(
    handle: EngineHandle, tokenizer: Tokenizer, system: str | None, given: dict[str, Any], say: Messages
) -> None:
    """Loads a model and chats with it.

    Args:
        handle: The engine.
        tokenizer: The model's tokenizer.
        system: System prompt, if any.
        given: Sampling parameters that were given.
        say: Prints notes.

    Raises:
        LlmctlError: The model cannot be loaded, or has no place for a system prompt.
    """
    from llmctl.commands.terminal import chat
    from llmctl.infer.text.generator import generator_of

    check_system(tokenizer, system)
    params = choose_params(replace(handle.sampling_defaults(), own={"max_new_tokens": LONGEST}), given, say)
    loaded = handle.load(tokenizer, [None])
    say.notes(loaded.notes)
    chat(generator_of(loaded.backend, loaded.max_positions, tokenizer, handle.options), params, system, say)


def check_system(tokenizer: Tokenizer, system: str | None) -> None:
    """Checks that a system prompt has a place in the chat template.

    Raises:
        ConfigError: There is no chat template.
    """
    if tokenizer.chat_template is None and system is not None:
        raise ConfigError("--system needs a chat template; name one with --chat-template")
