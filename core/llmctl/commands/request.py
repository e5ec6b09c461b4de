"""``llmctl request``: asks a server with OpenAI's API and prints its answer. Only the standard library is needed."""

from __future__ import annotations

import http.client
import json
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import click

from llmctl.errors import ConfigError, LlmctlError
from llmctl.io.json_object import parse_json

PATH = "/v1/chat/completions"


class AnswerError(LlmctlError):
    """The server refused, or its answer broke off."""


@click.command()
@click.argument("text")
@click.option("--url", metavar="URL", default="http://127.0.0.1:8000", show_default=True, help="Address of the server.")
@click.option("--api-key", envvar="LLMCTL_API_KEY", show_envvar=True, help="Key that the server wants.")
@click.option("--name", metavar="NAME", help="The model or adapter that answers. [default: the server's model]")
@click.option("--system", metavar="TEXT", help="System prompt.")
@click.option("--max-new-tokens", type=click.IntRange(1), metavar="N", help="Longest answer.")
@click.option(
    "--temperature", type=click.FloatRange(0, 2), help="Temperature of the distribution; 0 takes the likeliest token."
)
@click.option(
    "--top-p", type=click.FloatRange(0, 1), help="Only the likeliest tokens that together have this probability."
)
@click.option("--seed", type=int, help="Random seed; the same seed gives the same answer.")
@click.option("--no-stream", is_flag=True, help="Print the answer when it is complete.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole response as JSON.")
@click.option(
    "--timeout", default=600.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Seconds to wait."
)
@click.option("--insecure", is_flag=True, help="Do not check the certificate of an HTTPS server.")
def command(
    text: str, url: str, api_key: str | None, name: str | None, system: str | None, max_new_tokens: int | None,
    no_stream: bool, as_json: bool, timeout: float, insecure: bool, **sampling: Any,
) -> None:  # fmt: skip
    """Ask a server that speaks OpenAI's API, such as llmctl serve; TEXT is what the user says, - reads standard input."""
    said = sys.stdin.read() if text == "-" else text
    messages = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": said}]
    given = {**sampling, "model": name, "max_tokens": max_new_tokens}
    body = {"messages": messages, **{key: value for key, value in given.items() if value is not None}}
    stream = not (no_stream or as_json)
    with _asked(url, {**body, "stream": stream}, api_key, timeout, insecure) as response:
        if not stream:
            whole, answer = _whole(response)
            click.echo(json.dumps(whole, ensure_ascii=False) if as_json else answer)
            return
        for piece in _pieces(response):
            click.echo(piece, nl=False)
        click.echo()


def _asked(url: str, body: dict[str, Any], key: str | None, timeout: float, insecure: bool) -> http.client.HTTPResponse:
    """The response to a body.

    Raises:
        ConfigError: The address is not one, or no server answers there.
        AnswerError: The server refuses.
    """
    link, path = _connection(url, timeout, insecure)
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    try:
        link.request("POST", path, json.dumps(body).encode(), headers)
        response = link.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise ConfigError(
            f"no server answers at {url}: {error}; start one with llmctl serve MODEL, or see --url"
        ) from None
    if response.status != 200:
        with _explained():
            raise AnswerError(f"the server refuses ({response.status}): {_reason(response.read())}")
    return response


def _connection(url: str, timeout: float, insecure: bool) -> tuple[http.client.HTTPConnection, str]:
    """A connection to a server, and the path to ask."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"--url {url} is not an address; write it as http://HOST:PORT")
    path = parts.path.rstrip("/").removesuffix("/v1") + PATH
    if parts.scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=timeout), path
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=timeout, context=context), path


@contextmanager
def _explained() -> Iterator[None]:
    """What fails while an answer is read is the server's fault, or the network's.

    Raises:
        AnswerError: The answer broke off, or has another form.
    """
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise AnswerError(f"the answer broke off: {type(error).__name__}: {error}") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise AnswerError(
            f"the answer does not have the form of OpenAI's API ({type(error).__name__}: {error}); see --url"
        ) from None


def _whole(response: http.client.HTTPResponse) -> tuple[Any, str]:
    """The body of a response, and the text of the answer in it."""
    with _explained():
        whole = parse_json(response.read())
        return whole, whole["choices"][0]["message"]["content"] or ""


def _reason(data: bytes) -> str:
    try:
        return str(parse_json(data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return data.decode("utf-8", "replace")[:300]


def _pieces(response: http.client.HTTPResponse) -> Iterator[str]:
    """The texts of a streamed answer.

    Raises:
        AnswerError: It broke off, or has another form.
    """
    with _explained():
        for line in response:
            data = line.removeprefix(b"data: ").strip()
            if not line.startswith(b"data: "):
                continue
            if data == b"[DONE]":
                return
            event = parse_json(data)
            if "error" in event:
                raise AnswerError(f"the answer broke off: {event['error']['message']}")
            for choice in event["choices"]:
                yield choice["delta"].get("content") or ""
    raise AnswerError("the answer broke off")
