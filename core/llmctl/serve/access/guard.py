"""What stands before every route: host, origin, key, size, type and form of the body, in this order; and one log line after it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from llmctl.io.json_object import parse_json
from llmctl.serve.access.keys import ANYONE, ASKING, Keys
from llmctl.serve.apis.replies import SEND, Gone, problem_reply
from llmctl.serve.gradio import PATH as GRADIO_PATH
from llmctl.serve.metrics import Metrics
from llmctl.serve.problems import Problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOG = logging.getLogger("llmctl.serve")
BODY_SECONDS = 20.0
"""Longest time in which a body must have come."""

DRAIN_SECONDS = 1.0
"""Longest time in which a part of a body that nobody wants must come."""

LONG = 1 << 16
"""Bytes of a body that is not parsed in the event loop."""

ICON = "/favicon.ico"
OPEN_PATHS = ("/", "/docs", GRADIO_PATH, ICON, "/healthz", "/openapi.json", "/readyz")
"""Paths that need no key: they tell nothing that is not in the program."""

OPEN_BELOW = f"{GRADIO_PATH}/"
"""The Gradio page, which sends the key of who uses it to the paths that need one."""

BODY = "llmctl.body"
"""Where a scope has the value of the body."""


class Guard:
    """An ASGI application before another.

    Args:
        app: The other.
        keys: Who may ask.
        hosts: Names that the header ``Host`` may have, besides localhost and addresses in numbers.
        body_bytes: Largest body.
        metrics: Counts requests.
        paths: Paths and their methods; they are counted by name.
    """

    def __init__(
        self, app: App, keys: Keys, hosts: Collection[str], body_bytes: int, metrics: Metrics, paths: Mapping[str, str]
    ) -> None:
        self._app, self._keys, self._body_bytes, self._metrics, self._paths = app, keys, body_bytes, metrics, paths
        self._hosts = {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else f"req-{secrets.token_hex(8)}"
        started, status = time.monotonic(), 0
        ASKING.set(ANYONE)
        scope[SEND] = send

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._answer(scope, headers, receive, noted)
        except Gone:
            status = status or 499
        except Problem as problem:
            unread = scope["method"] == "POST" and BODY not in scope
            if unread and not await self._drained(headers, receive):
                problem.headers["connection"] = "close"
            await problem_reply(problem, scope["path"])(scope, receive, noted)
        except Exception as error:
            # The message may hold what a user wrote.
            LOG.error(
                "%s failed: %s\n%s", request_id, type(error).__name__, "".join(traceback.format_tb(error.__traceback__))
            )
            if not status:
                fault = Problem(f"an error in the server; its log has the request {request_id}", 500)
                await problem_reply(fault, scope["path"])(scope, receive, noted)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.count("requests_total", f'path="{path}",status="{status}"')
            ms, name = round(1000 * (time.monotonic() - started)), ASKING.get().name
            row = {"method": scope["method"], "path": path, "status": status, "ms": ms, "id": request_id, "key": name}
            LOG.info("%(method)s %(path)s %(status)d %(ms)dms %(id)s %(key)s", row, extra={"row": row})

    async def _answer(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        self._check_host(headers)
        path = scope["path"]
        page = path.startswith(OPEN_BELOW)
        if path not in OPEN_PATHS and not page:
            # Anthropic's clients send the key in a header of their own.
            key = self._keys.check(headers.get("authorization") or f"Bearer {headers.get('x-api-key', '')}")
            ASKING.set(key)
        if scope["method"] == "POST":
            scope[BODY] = await self._body(headers, receive, page or self._paths.get(path) == "POST")
        await self._app(scope, receive, send)

    def _check_host(self, headers: dict[str, str]) -> None:
        """Refuses pages of other sites, also those whose name leads to this machine (DNS rebinding)."""
        host = headers.get("host", "")
        name = _name(host)
        if name not in self._hosts and not _is_address(name):
            raise Problem(
                f"the server does not answer for the host {name[:80]!r}; see --allowed-host", 403, code="unknown_host"
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Problem("pages of other sites may not ask this server", 403, code="foreign_origin")

    async def _body(self, headers: dict[str, str], receive: Receive, wanted: bool) -> Any:
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._body_bytes:
            raise self._too_large()
        if wanted and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Problem("the body must be JSON: send the header content-type: application/json", 415)
        try:
            data = await asyncio.wait_for(self._read(receive), BODY_SECONDS)
        except asyncio.TimeoutError:
            raise Problem(f"the body has not come within {BODY_SECONDS:g} seconds", 408) from None
        if not wanted:
            return None
        try:
            if len(data) < LONG:
                return parse_json(data, bounded=True)
            return await asyncio.to_thread(parse_json, data, bounded=True)
        except ValueError as error:
            raise Problem(f"the body is not valid JSON: {error}", code="invalid_json") from None

    async def _drained(self, headers: dict[str, str], receive: Receive) -> bool:
        """Whether a small body that nobody wants was read, so that its client reads the answer instead of a broken connection."""
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > LONG:
            return False
        size, more = 0, True
        try:
            while more and size <= LONG:
                message = await asyncio.wait_for(receive(), DRAIN_SECONDS)
                size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        except asyncio.TimeoutError:
            return False
        return not more

    async def _read(self, receive: Receive) -> bytes:
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise Gone
            part, more = message.get("body", b""), message.get("more_body", False)
            parts.append(part)
            size += len(part)
            if size > self._body_bytes:
                raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> Problem:
        return Problem(f"the body has more than {self._body_bytes} bytes", 413, code="body_too_large")


def _name(host: str) -> str:
    """The name or address of a header ``Host``, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
