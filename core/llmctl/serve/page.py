"""The chat page at ``/``: one file that loads nothing else and asks the server's own API."""

from __future__ import annotations

import base64
import json
import re
from hashlib import sha256
from pathlib import Path

from starlette.responses import Response

from llmctl.serve.words import CHINESE

NONE = "'none'"
FILE = Path(__file__).with_name("page.html")


def page() -> Response:
    """The page to chat, with the table of its words in Chinese."""
    words = f"const CHINESE = {json.dumps(CHINESE, ensure_ascii=False)};"
    return page_of(FILE.read_text(encoding="utf-8").replace("const CHINESE = {};", words))


def page_of(text: str) -> Response:
    """A page; the browser runs no script but its own and asks no other server."""
    allowed = {tag: " ".join(_hash(part) for part in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL))
               for tag in ("script", "style")}  # fmt: skip
    policy = (
        f"default-src 'none'; script-src {allowed['script'] or NONE}; style-src {allowed['style']}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"content-security-policy": policy, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
    return Response(text, 200, headers, "text/html")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"
