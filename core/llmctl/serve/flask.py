"""The answers of a server inside a Flask application of one's own: chat completions and PaddleNLP's ``/api/chat``.

Keys, hosts and limits of bodies are the application's task; ``llmctl serve`` has them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from flask import Blueprint, Response, request

from llmctl.config.serve import ServeConfig
from llmctl.infer.options import EngineOptions
from llmctl.infer.select import open_backend
from llmctl.io.json_object import as_json, parse_json
from llmctl.serve.admission import Admission
from llmctl.serve.apis import openai, paddlenlp
from llmctl.serve.apis.replies import FAILURES, PADDLENLP_PATH, data_line
from llmctl.serve.metrics import Metrics
from llmctl.serve.problems import Problem
from llmctl.serve.server import load
from llmctl.serve.service import Service

T = TypeVar("T")


class Answering(Blueprint):
    """A blueprint with the routes ``/v1/chat/completions`` and ``/api/chat``.

    Args:
        folder: Folder of the model, or its name on a hub.
        config: Further configuration; None = the default.
        **options: As for ``llmctl.LLM``, such as ``weights="int8"``.

    Raises:
        LlmctlError: The model cannot be loaded.
    """

    def __init__(self, folder: str | Path, config: ServeConfig | None = None, **options: Any) -> None:
        super().__init__("llmctl", __name__)
        config = config or ServeConfig()
        config.model.path = str(folder)
        model, bridge, _ = load(open_backend(Path(folder), config.model.family, EngineOptions(**options)), config)
        limits = config.limits
        self.service = Service(
            model, bridge, Admission(limits.requests, limits.waiting_tokens), Metrics(), limits.seconds
        )
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="llmctl-flask", daemon=True).start()
        self._wait(self._start())
        self.add_url_rule("/v1/chat/completions", view_func=self._chat, methods=["POST"])
        self.add_url_rule(PADDLENLP_PATH, view_func=self._paddlenlp, methods=["POST"])
        self.register_error_handler(Problem, _failure)

    def close(self) -> None:
        """Ends the engine."""
        self.service.bridge.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _start(self) -> None:
        self.service.bridge.start()

    def _wait(self, work: Awaitable[T]) -> T:
        """What work in the event loop results in."""

        async def run() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _chat(self) -> Response:
        asked = openai.parse_chat(_body(), self.service)
        form = self._wait(openai.form_of(asked, self.service, True))
        if not asked.stream:
            return Response(as_json(self._wait(openai.whole(form, self.service))), mimetype="application/json")

        def fail(problem: Problem) -> bytes:
            return as_json(problem.body())

        return self._stream(
            openai.chunks(form, self.service), data_line, fail, b"data: [DONE]\n\n", "text/event-stream"
        )

    def _paddlenlp(self) -> Response:
        job = paddlenlp.parse(_body(), self.service)

        def write(piece: Any) -> bytes:
            return as_json(piece) + b"\n"

        return self._stream(paddlenlp.lines(job, self.service), write, paddlenlp.failure, b"", "application/x-ndjson")

    def _stream(
        self,
        pieces: AsyncGenerator[Any, None],
        write: Callable[[Any], bytes],
        fail: Callable[[Problem], Any],
        end: bytes,
        mimetype: str,
    ) -> Response:
        """The pieces as they come; the answer ends when the client leaves."""
        first = self._wait(anext(pieces, None))  # what goes wrong before it has a status of its own

        def lines() -> Iterator[bytes]:
            piece = first
            try:
                while piece is not None:
                    yield write(piece)
                    piece = self._wait(anext(pieces, None))
            except Problem as problem:
                yield write(fail(problem))
            finally:
                self._wait(pieces.aclose())
            yield end

        return Response(lines(), mimetype=mimetype, headers={"cache-control": "no-cache"})


def _body() -> Any:
    """The value of the request's body.

    Raises:
        Problem: It is not JSON.
    """
    if not request.is_json:
        raise Problem("the body must be JSON: send the header content-type: application/json", 415)
    try:
        return parse_json(request.get_data(), bounded=True)
    except ValueError as error:
        raise Problem(f"the body is not valid JSON: {error}", code="invalid_json") from None


def _failure(problem: Problem) -> Response:
    body = FAILURES.get(request.path, Problem.body)(problem)
    return Response(as_json(body), problem.status, problem.headers, mimetype="application/json")
