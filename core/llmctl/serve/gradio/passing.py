"""Passes requests of a browser on to the process that has Gradio: those of the page and its answers, and no others."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from llmctl.io.json_object import as_json
from llmctl.serve.access.guard import BODY
from llmctl.serve.apis.replies import while_there
from llmctl.serve.gradio import PATH
from llmctl.serve.problems import Problem

PASSED = {
    "GET": r"|config|theme\.css|(assets|static)/[\w./-]+|gradio_api/(startup-events|queue/data)",
    "POST": r"gradio_api/(queue/join|run/predict|cancel|reset)",
}
"""Method -> paths below the page that are passed on: nothing that stores, reads or fetches files."""

POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
"""The browser asks no other server, whatever a model writes. Gradio's scripts stand in the page and make functions from texts."""

HEADERS_IN = ("accept", "accept-language", "content-type", "host", "if-none-match", "if-modified-since", "user-agent")
HEADERS_OUT = ("cache-control", "content-type", "etag", "last-modified", "location")


class Passing:
    """The routes below ``PATH``.

    Args:
        page: Path of the socket on which the process listens.
        alive: Whether it runs.
    """

    def __init__(self, page: str, alive: Callable[[], bool]) -> None:
        self._alive = alive
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=page, limits=httpx.Limits(max_connections=None)),
            base_url="http://page", timeout=httpx.Timeout(10, read=None),
        )  # fmt: skip

    async def answer(self, request: Request) -> Response:
        """What the process answers to a request."""
        path = request.scope["path"].removeprefix(PATH)
        if not path:
            return RedirectResponse(f"{PATH}/")
        if not re.fullmatch(PASSED.get(request.method, ""), path[1:], re.ASCII) or ".." in path:
            raise Problem("there is no such path", 404)
        headers = {name: value for name in HEADERS_IN if (value := request.headers.get(name))}
        outside = request.headers.get("x-forwarded-proto", "")
        headers["x-forwarded-proto"] = outside if outside in ("http", "https") else request.url.scheme
        body = as_json(request.scope[BODY]) if request.method == "POST" else None
        query = f"?{request.url.query}" if request.url.query else ""
        asked = self._client.build_request(request.method, f"{PATH}{path}{query}", headers=headers, content=body)
        try:
            answer = await while_there(request.receive, self._client.send(asked, stream=True))
        except httpx.ConnectError:
            if self._alive():
                raise Problem("the page is starting", 503, code="starting", headers={"refresh": "1"}) from None
            raise Problem("the process of the page has ended; see the server's log", 503, code="page_down") from None
        except httpx.HTTPError as error:
            raise Problem(f"the process of the page does not answer: {type(error).__name__}", 503) from None
        return Passed(answer)


class Passed(Response):
    """An answer of the process, in pieces as they come.

    Args:
        answer: The answer, whose body is not read yet.
    """

    def __init__(self, answer: httpx.Response) -> None:
        headers = {name: answer.headers[name] for name in HEADERS_OUT if name in answer.headers}
        more = {
            "content-security-policy": POLICY,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
        }
        super().__init__(None, answer.status_code, {**headers, **more, "x-accel-buffering": "no"})
        if "content-length" in self.headers:
            del self.headers["content-length"]
        self._answer = answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Sends the pieces; the answer ends when the client leaves."""
        try:
            await while_there(receive, self._run(send))
        finally:
            await self._answer.aclose()

    async def _run(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for part in self._answer.aiter_bytes():
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except httpx.HTTPError:
            pass  # the process has ended, and with it the stream
        await send({"type": "http.response.body", "body": b"", "more_body": False})
