"""The routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmctl.errors import LlmctlError
from llmctl.serve.access.guard import BODY, ICON, App, Guard
from llmctl.serve.access.keys import ASKING, Keys
from llmctl.serve.apis import anthropic, openai, openapi, paddlenlp, responses
from llmctl.serve.apis.capabilities import capabilities
from llmctl.serve.apis.fields import DETOKENIZE, LOAD_ADAPTER, TOKENIZE, UNLOAD_ADAPTER, need, read
from llmctl.serve.apis.replies import (
    PADDLENLP_PATH,
    Gone,
    events,
    json_reply,
    ndjson,
    problem_reply,
    typed_events,
    while_there,
)
from llmctl.serve.gradio import PATH as GRADIO_PATH
from llmctl.serve.page import page, page_of
from llmctl.serve.problems import Problem
from llmctl.serve.service import Service


def make_app(
    service: Service,
    keys: Keys,
    hosts: tuple[str, ...] = (),
    body_bytes: int = 8 << 20,
    gradio: Callable[[Request], Any] | None = None,
) -> App:
    """The whole application.

    Args:
        service: Answers.
        keys: Who may ask.
        hosts: As for ``Guard``.
        body_bytes: Largest body of a request.
        gradio: What answers for the Gradio page; None = there is none.
    """
    paths = _paths(Routes(service))
    routes = [Route(path, run, methods=[method]) for path, (method, run) in paths.items()] + [Route(ICON, no_icon)]
    if gradio:
        paths[GRADIO_PATH] = ("GET", gradio)
        routes += [Route(GRADIO_PATH + rest, gradio, methods=["GET", "POST"]) for rest in ("", "/{path:path}")]
    methods = {path: method for path, (method, _) in paths.items()}
    app = Starlette(lifespan=_lifespan(service), routes=routes, exception_handlers=_handlers(methods))
    return Guard(app, keys, hosts, body_bytes, service.metrics, methods)


def _paths(routes: Routes) -> dict[str, tuple[str, Callable[[Request], Any]]]:
    """Path -> its method, and what answers."""
    return {
        "/": ("GET", routes.page),
        "/v1/chat/completions": ("POST", routes.chat),
        "/v1/completions": ("POST", routes.completions),
        responses.PATH: ("POST", routes.responses),
        anthropic.PATH: ("POST", routes.messages),
        anthropic.COUNT_PATH: ("POST", routes.count_tokens),
        "/v1/embeddings": ("POST", routes.embeddings),
        "/v1/models": ("GET", routes.models),
        "/v1/models/{name:path}": ("GET", routes.model),
        "/v1/load_lora_adapter": ("POST", routes.load_adapter),
        "/v1/unload_lora_adapter": ("POST", routes.unload_adapter),
        "/tokenize": ("POST", routes.tokenize),
        "/detokenize": ("POST", routes.detokenize),
        PADDLENLP_PATH: ("POST", routes.paddlenlp),
        "/v1/capabilities": ("GET", routes.capabilities),
        "/openapi.json": ("GET", routes.openapi),
        "/docs": ("GET", routes.docs),
        "/healthz": ("GET", routes.healthz),
        "/readyz": ("GET", routes.readyz),
        "/metrics": ("GET", routes.metrics),
    }


def _handlers(methods: Mapping[str, str]) -> Mapping[Any, Callable[[Request, Exception], Any]]:
    """Class of an error -> what answers; the message of a wrong path has those that there are, with their methods."""

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return problem_reply(error, request.url.path)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method} is not answered here" if error.status_code == 405 else "there is no such path"
        known = ", ".join(f"{method} {path}" for path, method in methods.items())
        problem = Problem(f"{what}; there are: {known}", error.status_code, headers=error.headers)
        return problem_reply(problem, request.url.path)

    async def on_fault(request: Request, error: Exception) -> Response:
        if isinstance(error, Gone):
            raise error  # nobody reads an answer, and the server is not at fault
        return problem_reply(Problem("an error in the server; see its log", 500), request.url.path)

    return {Problem: on_problem, HTTPException: on_http, Exception: on_fault}


def _lifespan(service: Service) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    """Starts the engine with the server and ends it with it; grammars are prepared meanwhile."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.bridge.start()
        grammars = service.model.grammars
        prepared = asyncio.create_task(asyncio.to_thread(grammars.prepare)) if grammars else None
        yield
        service.bridge.stop()
        if prepared:
            await prepared

    return lifespan


class Routes:
    """What each path does.

    Args:
        service: Answers.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def chat(self, request: Request) -> Response:
        """A chat completion."""
        return await self._openai(request, openai.parse_chat, True)

    async def completions(self, request: Request) -> Response:
        """A completion."""
        return await self._openai(request, openai.parse_completion, False)

    async def _openai(self, request: Request, parse: Callable[..., openai.Asked], chat: bool) -> Response:
        service = self._service
        service.check_open()
        asked = await run_in_threadpool(parse, request.scope[BODY], service)
        forming = openai.form_of(asked, service, chat)
        form = await (while_there(request.receive, forming) if asked.echo else forming)
        if not asked.stream:
            return json_reply(await while_there(request.receive, openai.whole(form, service)))
        return events(openai.chunks(form, service))

    async def responses(self, request: Request) -> Response:
        """A response, which is not stored."""
        service = self._service
        service.check_open()
        asked = await run_in_threadpool(responses.parse, request.scope[BODY], service)
        if not asked.asked.stream:
            return json_reply(await while_there(request.receive, responses.whole(asked, service)))
        return typed_events(
            responses.events(asked, service),
            lambda problem: asked.event("error", **problem.body()["error"]) | {"type": "error"},
        )

    async def messages(self, request: Request) -> Response:
        """A message as Anthropic has it."""
        service = self._service
        service.check_open()
        asked = await run_in_threadpool(anthropic.parse, request.scope[BODY], service)
        if not asked.stream:
            return json_reply(await while_there(request.receive, anthropic.whole(asked, service)))
        return typed_events(anthropic.events(asked, service), anthropic.failure)

    async def count_tokens(self, request: Request) -> Response:
        """How many tokens a prompt has."""
        return json_reply(await run_in_threadpool(anthropic.count, request.scope[BODY], self._service))

    async def embeddings(self, request: Request) -> Response:
        """Why there are none."""
        raise Problem(
            "the engine gives tokens and their log-probabilities, no embeddings; serve an embedding model elsewhere",
            501,
        )

    async def paddlenlp(self, request: Request) -> Response:
        """An answer as PaddleNLP's server gives it."""
        self._service.check_open()
        job = await run_in_threadpool(paddlenlp.parse, request.scope[BODY], self._service)
        return ndjson(paddlenlp.lines(job, self._service))

    async def models(self, request: Request) -> Response:
        """The model and its adapters."""
        return json_reply({"object": "list", "data": [self._model(name) for name in self._service.model.names]})

    async def model(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        self._service.model.adapter(name)
        return json_reply(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        model = self._service.model
        more = {} if name == model.name else {"parent": model.name}
        return {
            "id": name, "object": "model", "created": model.created, "owned_by": "llmctl",
            "max_model_len": model.max_positions or None, **more,
        }  # fmt: skip

    async def load_adapter(self, request: Request) -> Response:
        """Loads an adapter, for an admin."""
        ASKING.get().check_admin()
        values, service = read(request.scope[BODY], LOAD_ADAPTER), self._service
        need(values, "lora_name", "lora_path")
        name, folder = values["lora_name"], Path(values["lora_path"])
        if name in service.model.names or not name:
            raise Problem(f"lora_name is {name[:80]!r}; choose one that no model or adapter has", param="lora_name")
        try:
            await run_in_threadpool(service.model.adapters.load, name, folder, service.bridge.between_steps)
        except LlmctlError as error:
            raise Problem(str(error), param="lora_path") from None
        return json_reply(self._model(name))

    async def unload_adapter(self, request: Request) -> Response:
        """Unloads an adapter, for an admin."""
        ASKING.get().check_admin()
        values = read(request.scope[BODY], UNLOAD_ADAPTER)
        need(values, "lora_name")
        self._service.model.adapters.unload(values["lora_name"])
        return json_reply({"id": values["lora_name"], "object": "model", "deleted": True})

    async def tokenize(self, request: Request) -> Response:
        """Token ids of a text or a conversation."""
        return json_reply(await run_in_threadpool(self._tokenize, request.scope[BODY]))

    def _tokenize(self, body: Any) -> dict[str, Any]:
        values, model = read(body, TOKENIZE), self._service.model
        model.adapter(values.get("model"))
        given = [name for name in ("prompt", "content", "messages") if name in values]
        if len(given) != 1:
            raise Problem("give one of prompt, content and messages")
        special = values.get("add_special_tokens", values.get("add_special", "content" not in values))
        if "messages" in values:
            ids = model.conversation(values)
        elif special:
            ids = model.text_prompt(values[given[0]])
        else:
            ids = model.plain(values[given[0]])
        tokens = [{"id": token, "piece": model.piece(token)} for token in ids] if values.get("with_pieces") else ids
        return {"tokens": tokens, "count": len(ids), "max_model_len": model.max_positions or None}

    async def detokenize(self, request: Request) -> Response:
        """The text of token ids."""
        values, model = read(request.scope[BODY], DETOKENIZE), self._service.model
        model.adapter(values.get("model"))
        if "tokens" not in values:
            raise Problem("tokens is missing", param="tokens", code="missing_field")
        ids = model.known(values["tokens"], "tokens")
        text = await run_in_threadpool(model.tokenizer.decode, ids, False)
        return json_reply({"prompt": text, "content": text})

    async def page(self, request: Request) -> Response:
        """A page to chat."""
        return page()

    async def capabilities(self, request: Request) -> Response:
        """What the model can do here."""
        return json_reply(await run_in_threadpool(capabilities, self._service.model))

    async def openapi(self, request: Request) -> Response:
        """The description of the API."""
        return json_reply(openapi.document())

    async def docs(self, request: Request) -> Response:
        """The same for people."""
        return page_of(openapi.page())

    async def healthz(self, request: Request) -> Response:
        """Whether the process should be left running."""
        alive = self._service.bridge.alive
        return json_reply({"status": "ok" if alive else "the engine has stopped"}, 200 if alive else 503)

    async def readyz(self, request: Request) -> Response:
        """Whether requests should be sent here."""
        self._service.check_open()
        return json_reply({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Counters."""
        service = self._service
        gauges = {
            **service.bridge.gauges(), "engine_up": float(service.bridge.alive),
            "answers_held": service.admission.admitted, "waiting_prompt_tokens": service.admission.waiting,
        }  # fmt: skip
        return Response(service.metrics.text(gauges), media_type="text/plain; version=0.0.4")


async def no_icon(request: Request) -> Response:
    """Browsers ask for an icon wherever a page names none."""
    return Response(status_code=204)
