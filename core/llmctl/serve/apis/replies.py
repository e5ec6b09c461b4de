"""Responses: JSON, streams that end when their client leaves, and errors in the form of the API that was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.responses import Response

from llmctl.io.json_object import as_json
from llmctl.serve.apis import anthropic
from llmctl.serve.apis.paddlenlp import failure
from llmctl.serve.problems import Problem

T = TypeVar("T")
PADDLENLP_PATH = "/api/chat"

FAILURES = {PADDLENLP_PATH: failure, anthropic.PATH: anthropic.failure, anthropic.COUNT_PATH: anthropic.failure}
"""Path -> how errors are written there."""


SEND = "llmctl.send"
"""Where a scope has the server's own ``send``. What lies between it and a response has seen all that it needs once the response
has begun, and would be gone through for every token."""


class Gone(Exception):
    """The client has left."""


def json_reply(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response of JSON."""
    return Response(as_json(content), status, headers, "application/json")


def problem_reply(problem: Problem, path: str) -> Response:
    """The response that says why there is no answer."""
    body = FAILURES.get(path, Problem.body)(problem)
    return json_reply(body, problem.status, problem.headers)


async def while_there(receive: Any, work: Awaitable[T]) -> T:
    """What work results in; it is ended when the client leaves.

    Raises:
        Gone: The client has left.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class StreamReply(Response):
    """A streamed response. Its status is sent with the first piece, so that an error before that has its own status.

    Args:
        pieces: The pieces.
        write: A piece as bytes.
        fail: What is sent for a problem after the first piece.
        end: What is sent at the end.
        media_type: Type of the whole.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[Any, None],
        write: Callable[[Any], bytes],
        fail: Callable[[Problem], bytes],
        end: bytes,
        media_type: str,
    ) -> None:
        super().__init__(None, 200, {"cache-control": "no-cache", "x-accel-buffering": "no"}, media_type)
        del self.headers["content-length"]
        self._pieces, self._write, self._fail, self._end = pieces, write, fail, end

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Sends the pieces."""
        try:
            await while_there(receive, self._run(send, scope.get(SEND, send)))
        finally:
            await self._pieces.aclose()

    async def _run(self, send: Any, direct: Any) -> None:
        piece = await anext(self._pieces, None)
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            while piece is not None:
                await direct({"type": "http.response.body", "body": self._write(piece), "more_body": True})
                piece = await anext(self._pieces, None)
        except Problem as problem:
            await direct({"type": "http.response.body", "body": self._fail(problem), "more_body": True})
        await direct({"type": "http.response.body", "body": self._end, "more_body": False})


def data_line(piece: bytes) -> bytes:
    """JSON as an event without a name."""
    return b"data: %b\n\n" % piece


def events(pieces: AsyncGenerator[bytes, None]) -> StreamReply:
    """Server-sent events as OpenAI sends them, of pieces that are JSON."""

    def fail(problem: Problem) -> bytes:
        return data_line(as_json(problem.body()))

    return StreamReply(pieces, data_line, fail, b"data: [DONE]\n\n", "text/event-stream")


def typed_events(pieces: AsyncGenerator[Any, None], fail: Callable[[Problem], dict[str, Any]]) -> StreamReply:
    """Server-sent events with names, which are their types."""

    def write(piece: Any) -> bytes:
        return b"event: %s\ndata: %s\n\n" % (piece["type"].encode(), as_json(piece))

    return StreamReply(pieces, write, lambda problem: write(fail(problem)), b"", "text/event-stream")


def ndjson(pieces: AsyncGenerator[Any, None]) -> StreamReply:
    """Lines of JSON as PaddleNLP sends them."""

    def write(piece: Any) -> bytes:
        return as_json(piece) + b"\n"

    return StreamReply(pieces, write, lambda problem: write(failure(problem)), b"", "application/x-ndjson")
