"""``llmctl serve``: an HTTP server with OpenAI's API and others. Options override the keys of a configuration."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from llmctl.commands.engine_options import adapters_of, engine_options, options_of
from llmctl.commands.messages import Messages, messages, verbosity
from llmctl.commands.model_option import model_option
from llmctl.config import file, schema
from llmctl.config.serve import ServeConfig
from llmctl.errors import require, require_installed
from llmctl.infer.select import open_backend

SECTIONS = {
    "name": "model", "adapters": "model", "chat_template": "model", "engine": "model", "weights": "model", "group": "model",
    "kv": "model", "cache_memory": "model", "batch_size": "model", "step_tokens": "model", "speculate": "model",
    "threads": "model", "host": "server", "port": "server", "unix_socket": "server", "tls_certificate": "server",
    "tls_key": "server", "allowed_hosts": "server", "api_key_file": "server",
    "grace_seconds": "server", "gradio": "server",
}  # fmt: skip
"""Option -> section of the configuration with the key of its name."""


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@model_option("The same as MODEL; or the family of the model.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="FILE",
              help="Configuration (serve.yaml); options override its keys.")  # fmt: skip
@click.option("--host", metavar="ADDRESS", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 is a free one. [default: 8000]")
@click.option(
    "--unix-socket",
    type=click.Path(),
    metavar="FILE",
    help="Socket in the file system to listen on, instead of an address.",
)
@click.option("--tls-certificate", type=click.Path(), metavar="FILE", help="Certificate for HTTPS, as PEM.")
@click.option("--tls-key", type=click.Path(), metavar="FILE", help="Its private key, as PEM.")
@click.option("--name", metavar="NAME", help="Name by which clients ask for the model. [default: that of its folder]")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads of the kernels. [default: cores - 1]")
@engine_options
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    metavar="N",
    help="Answers computed together. [default: 64; others than fused 8]",
)
@click.option(
    "--step-tokens", type=click.IntRange(2), metavar="N", help="Tokens of a step (fused). [default: --batch-size + 64]"
)
@click.option("--speculate", type=click.IntRange(1), metavar="N",
              help="Speculative decoding by prompt lookup, up to N draft tokens; answers do not change (fused).")  # fmt: skip
@click.option("--adapter", "adapters", multiple=True, metavar="[NAME=]FOLDER",
              help="LoRA adapter or prefix for MODEL. Repeat with names that clients ask for (fused).")  # fmt: skip
@click.option("--chat-template", default="auto", show_default=True,
              help="auto (the model's own), family, none, or a file or folder.")  # fmt: skip
@click.option("--api-key", envvar="LLMCTL_API_KEY", show_envvar=True,
              help="Key that clients must send. Others on the machine can read options; the variable or a file is safer.")  # fmt: skip
@click.option("--api-key-file", type=click.Path(), metavar="FILE",
              help="File of keys, one a line, as they are or as sha256: and their hash.")  # fmt: skip
@click.option("--allowed-host", "allowed_hosts", multiple=True, metavar="NAME",
              help="Name under which clients reach the server; may be repeated. Addresses and localhost always work.")  # fmt: skip
@click.option(
    "--gradio",
    is_flag=True,
    help="Serve a Gradio page too, at /gradio, with what the page at / lacks: sliders and the raw context.",
)
@click.option("--grace", "grace_seconds", type=click.FloatRange(0), metavar="SECONDS",
              help="How long running answers may go on after SIGTERM or Ctrl-C. [default: 30]")  # fmt: skip
@verbosity
@click.pass_context
def command(
    ctx: click.Context, /, model: Path | None, config_file: Path | None, api_key: str | None, **given: Any
) -> None:
    """Serve the model in the folder MODEL over HTTP, with the APIs of OpenAI, Anthropic and PaddleNLP's server.

    MODEL is as for llmctl generate.
    """
    say = messages(ctx)
    chosen = {
        name: value for name, value in given.items() if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    if api_key == "":
        raise click.UsageError("--api-key is empty; leave it out to serve without keys")
    config = _config(config_file, chosen)
    if model is None and config.model.path and not ctx.obj.names_folder:
        model = Path(config.model.path)
    folder = ctx.obj.folder_or(model)
    config.model.path = str(folder)
    require("starlette", "serve", "llmctl serve")
    require("uvicorn", "serve", "llmctl serve")
    if config.server.gradio:
        require_installed("gradio", "page", "llmctl serve --gradio")
    _set_threads(config.model.threads)
    ctx.exit(_serve(config, config.model.family if ctx.obj.family == "auto" else ctx.obj.family, api_key, say))


def _config(path: Path | None, chosen: Mapping[str, Any]) -> ServeConfig:
    """The configuration in a file with the options of the command instead of its keys.

    Raises:
        ConfigError: A key is unknown or a value out of range.
    """
    data = file.read_file(path) if path else {}
    for name, value in chosen.items():
        part = data.setdefault(SECTIONS[name], {})
        if isinstance(part, dict):
            part[name] = list(value) if isinstance(value, tuple) else value
    return schema.build(ServeConfig, data, str(path) if path else "llmctl serve")


def _set_threads(threads: int) -> None:
    """How many threads the kernels have: one core is left for HTTP and tokenizers, unless the environment says a number."""
    if threads:
        os.environ["LLMCTL_THREADS"] = str(threads)
    elif not {"LLMCTL_THREADS", "OMP_NUM_THREADS"} & os.environ.keys():
        from llmctl.runtime import process

        os.environ["LLMCTL_THREADS"] = str(max(1, process.available_cores() - 1))


def _serve(config: ServeConfig, family: str, api_key: str | None, say: Messages) -> int:
    """Loads the model and serves it; returns the exit code."""
    from llmctl.serve import log, server
    from llmctl.serve.access.allowance import Limits
    from llmctl.serve.access.keys import Keys
    from llmctl.serve.gradio import PATH as GRADIO_PATH
    from llmctl.serve.gradio.child import Child

    part, where = config.model, config.server
    limits = Limits(config.limits.key_requests, config.limits.key_tokens, config.limits.key_parallel)
    keys = Keys([api_key] if api_key else [], Path(where.api_key_file) if where.api_key_file else None, limits)
    server.check_tls(where)
    adapter = adapters_of(part.adapters)
    names = ("engine", "weights", "kv", "cache_memory", "batch_size", "step_tokens", "speculate")
    wanted = {name: getattr(part, name) or None for name in names}
    options = options_of({**wanted, "group": None if part.group < 0 else part.group}, adapter=adapter)
    handle = open_backend(Path(part.path), family, options)
    with contextlib.ExitStack() as stack:
        stack.enter_context(log.lossy())
        bound = stack.enter_context(
            server.listen_unix(where.unix_socket) if where.unix_socket else server.listen(where.host, where.port)
        )
        child = stack.enter_context(Child(bool(where.tls_key))) if where.gradio else None
        model, bridge, notes = server.load(handle, config)
        say.notes(notes)
        if not keys and not where.unix_socket and not server.is_local(where.host):
            click.echo(f"warning: everybody who reaches {where.host} can use the model; see --api-key-file", err=True)
        log.set_up(where.log, say.quiet)

        def ready() -> None:
            say.note(f"serving {', '.join(model.names)} at {server.address_of(bound, where)}; Ctrl-C ends it")
            if child and not where.unix_socket:
                say.note(
                    f"the page of Gradio starts at {server.address_of(bound, where).removesuffix('/v1')}{GRADIO_PATH}"
                )

        if child is None:
            return server.run(model, bridge, config, keys, [bound], ready)
        from llmctl.serve.gradio.passing import Passing

        child.show(model, bool(keys))
        return server.run(
            model, bridge, config, keys, [bound, child.asked], ready, Passing(child.page, child.alive).answer
        )
