"""A server on the loopback that speaks as much of ModelScope's protocol as downloading a model needs."""

import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

from kit.loopback import listening


@dataclass
class ModelScopeServer:
    """What the server holds, and what it was asked.

    Attributes:
        name: Name of its only model.
        files: Its files.
        cut: File -> number of bytes after which the first answer with it breaks off.
        got: Files that were sent, each with the range that was asked for.
    """

    name: str
    files: dict[str, bytes]
    cut: dict[str, int] = field(default_factory=dict)
    got: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_: ModelScopeServer

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(False)

    def do_GET(self):
        self._answer(True)

    def _answer(self, body):
        here, url = self.server_, urlsplit(self.path)
        if f"/models/{here.name}" not in url.path:
            return self._json(404, {"Code": 10010205001, "Success": False, "Message": "not found"}, body)
        if url.path.endswith("/repo/files"):
            rows = [{"Path": name, "Name": name, "Type": "blob", "Size": len(content), "Revision": "a" * 40, "IsLFS": False,
                     "Sha256": hashlib.sha256(content).hexdigest()} for name, content in here.files.items()]  # fmt: skip
            return self._json(200, {"Code": 200, "Success": True, "Data": {"Files": rows}}, body)
        if url.path.endswith("/repo"):
            return self._file(parse_qs(url.query)["FilePath"][0], body)
        return self._json(200, {"Code": 200, "Success": True, "Data": {}}, body)

    def _file(self, name, body):
        here, wanted = self.server_, self.headers.get("range", "")
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        content = here.files[name][start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content)))
        if wanted:
            total = len(here.files[name])
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        if body:
            here.got.append((name, wanted))
            stop = here.cut.pop(name, None)
            self.wfile.write(content[:stop])
            self.close_connection = stop is not None

    def _json(self, status, content, body):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if body:
            self.wfile.write(text)


@contextmanager
def serving(name, files):
    """A hub with one model that is served during the block."""
    hub = ModelScopeServer(name, files)
    with listening(type("Handler", (_Handler,), {"server_": hub})) as hub.url:
        yield hub
