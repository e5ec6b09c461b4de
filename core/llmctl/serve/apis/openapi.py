"""The description of the API by OpenAPI 3.1, and a page that shows it. Both come from the tables of ``fields``."""

from __future__ import annotations

import html
import math
from typing import Any

from llmctl._version import __version__
from llmctl.serve.apis import fields
from llmctl.serve.apis.fields import REFUSED, Field

BODIES = {
    "/v1/chat/completions": ("A chat completion.", fields.CHAT, ("messages",)),
    "/v1/completions": ("Text that continues a prompt.", fields.COMPLETIONS, ("prompt",)),
    "/v1/responses": ("A response, which is not stored.", fields.RESPONSES, ("input",)),
    "/v1/messages": ("A message as Anthropic has it.", fields.MESSAGES, ("messages", "max_tokens")),
    "/v1/messages/count_tokens": ("Tokens of a prompt of messages.", fields.COUNT_TOKENS, ("messages",)),
    "/v1/load_lora_adapter": (
        "Loads an adapter; needs a key of the class admin.",
        fields.LOAD_ADAPTER,
        ("lora_name", "lora_path"),
    ),
    "/v1/unload_lora_adapter": ("Unloads one; likewise.", fields.UNLOAD_ADAPTER, ("lora_name",)),
    "/tokenize": ("Token ids of a text or a conversation.", fields.TOKENIZE, ()),
    "/detokenize": ("The text of token ids.", fields.DETOKENIZE, ("tokens",)),
    "/api/chat": ("An answer as PaddleNLP's server gives it.", fields.PADDLENLP, ("context",)),
}
"""Path -> what it answers, fields of its body, and those that are needed."""

READ = {
    "/v1/models": "The model and its adapters.", "/v1/models/{name}": "One of them.",
    "/v1/capabilities": "What the model can do here.", "/healthz": "Whether the engine runs.",
    "/readyz": "Whether requests are answered.", "/metrics": "Counters for Prometheus.",
}  # fmt: skip

STREAMED = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
TEXT = "text/plain"
KINDS: dict[str, dict[str, Any]] = {
    "integer": {"type": "integer"}, "number": {"type": "number"}, "boolean": {"type": "boolean"}, "text": {"type": "string"},
    "texts": {"type": ["string", "array"], "items": {"type": "string"}},
    "integers": {"type": "array", "items": {"type": "integer", "minimum": 0}},
    "prompt": {"type": ["string", "array"]}, "object": {"type": "object"}, "list": {"type": "array"},
    "texts or objects": {"type": ["string", "array"], "items": {"type": "object"}}, "any": {},
}  # fmt: skip
"""Kind of a field -> its schema."""

ERRORS: dict[str, Any] = {
    "default": {
        "description": "What is wrong, in the form of the path's API.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
}
"""Every answer but a good one."""


def document() -> dict[str, Any]:
    """The description of the API."""
    paths: dict[str, Any] = {path: {"post": _post(path)} for path in BODIES}
    for path, text in READ.items():
        media = TEXT if path == "/metrics" else "application/json"
        get: dict[str, Any] = {"summary": text, "responses": {"200": _reply(media), **ERRORS}}
        if "{" in path:
            get["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
        paths[path] = {"get": get}
    error = {"type": "object", "additionalProperties": True}
    return {
        "openapi": "3.1.0", "info": {"title": "llmctl", "version": __version__}, "paths": paths,
        "security": [{}, {"key": []}],
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}, "schemas": {"Error": error},
        },
    }  # fmt: skip


def _post(path: str) -> dict[str, Any]:
    text, rows, needed = BODIES[path]
    shown = [row for row in rows if row.effect != REFUSED]
    body: dict[str, Any] = {
        "type": "object",
        "properties": {row.name: _schema(row, row.name in needed) for row in shown},
        "additionalProperties": False,
    }
    if needed:
        body["required"] = [*needed]
    good = _reply("application/x-ndjson" if path == "/api/chat" else "application/json")
    if path in STREAMED:
        good["content"]["text/event-stream"] = {}
    return {
        "summary": text, "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": good, **ERRORS},
    }  # fmt: skip


def _schema(row: Field, needed: bool = False) -> dict[str, Any]:
    """A field's values; null is the same as leaving it out."""
    schema = {**KINDS[row.kind]}
    if schema and not needed:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        schema["type"] = [*kinds, "null"]
    if row.kind in ("integer", "number"):
        bounds = {"minimum": row.low, "maximum": row.high}
        schema |= {name: bound for name, bound in bounds.items() if math.isfinite(bound)}
    note = row.note if row.effect == fields.WORKS else f"Without effect: {row.note}"
    return {**schema, **({"description": note} if note else {})}


def _reply(media: str) -> dict[str, Any]:
    return {"description": "The answer.", "content": {media: {}}}


def page() -> str:
    """The same for people, as a page that loads nothing."""
    parts = []
    for path, (text, rows, needed) in BODIES.items():
        lines = "".join(_row(row, row.name in needed) for row in rows)
        parts.append(f"<h2>POST {html.escape(path)}</h2><p>{html.escape(text)}</p><table>{lines}</table>")
    parts += [f"<h2>GET {html.escape(path)}</h2><p>{html.escape(text)}</p>" for path, text in READ.items()]
    return HEAD + "".join(parts) + "</main></body></html>"


def _row(row: Field, needed: bool) -> str:
    kind, effect = html.escape(fields.KINDS[row.kind][0]), "needed" if needed else row.effect
    return f"<tr><td><code>{row.name}</code><td>{kind}<td>{effect}<td>{html.escape(row.note)}"


HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    "<title>API of llmctl</title><style>body{font:16px/1.5 system-ui,sans-serif;margin:0;color:#222;background:#fff}"
    "main{max-width:60rem;margin:auto;padding:1rem}table{border-collapse:collapse;width:100%}"
    "td{border-top:1px solid #ddd;padding:.3rem .6rem .3rem 0;vertical-align:top}"
    "@media(prefers-color-scheme:dark){body{color:#eee;background:#181818}td{border-color:#444}a{color:#9cf}}</style></head>"
    '<body><main><h1>API of llmctl</h1><p>For programs: <a href="openapi.json">openapi.json</a>.</p>'
)
