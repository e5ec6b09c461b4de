"""A server on the loopback that speaks the protocol of the Hugging Face Hub: models, trees, files with ranges, errors."""

import hashlib
import json
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kit.loopback import listening

COMMIT = "0123456789abcdef" * 2 + "01234567"
LARGE = 10_000
"""Files of this size and more are kept aside, as large files are."""


@dataclass
class Hub:
    """What the server holds, and what it was asked.

    Attributes:
        models: Name -> its files, of branch main and commit ``COMMIT``.
        gated: Names that only some may read.
        token: What private models need.
        cut: File -> number of bytes after which the first answer with it breaks off.
        down: Whether files are refused with 503.
        got: Files that were sent, each with the range that was asked for.
    """

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = ""
    cut: dict[str, int] = field(default_factory=dict)
    down: bool = False
    got: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def add(self, name, folder, **more):
        """A model with the files of a folder and others, given by name."""
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
        self.models[name] = {**files, **{key: value for key, value in more.items()}}

    def sent(self):
        """How often each file was sent."""
        return Counter(name for name, _ in self.got)

    def environment(self, cache, **more):
        """Environment of a process that knows no other hub."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": "", **more}  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        path = unquote(urlsplit(self.path).path).strip("/")
        name = next((name for name in self.hub.models if f"{name}/" in f"{path}/"), None)
        if name is None:
            return self._error(401, "RepoNotFound", "Invalid username or password.", body)
        if name in self.hub.gated and self.headers.get("authorization") != f"Bearer {self.hub.token}":
            return self._error(403, "GatedRepo", "Access to this model is restricted.", body)
        parts = path.partition(f"{name}/")[2].split("/")
        if path.startswith("api/models/"):
            kind, revision = (parts + ["", ""])[:2]
            if revision not in ("main", COMMIT, "") or kind not in ("revision", "tree", ""):
                return self._error(404, "RevisionNotFound", "Invalid rev id", body)
            return self._json(self._tree(name) if kind == "tree" else self._info(name), body)
        if parts[0] == "resolve":
            return self._file(name, parts[1], "/".join(parts[2:]), body)
        return self._error(404, "EntryNotFound", "no such page", body)

    def _info(self, name):
        siblings = [{"rfilename": file, "size": len(content)} for file, content in self.hub.models[name].items()]
        return {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False, "downloads": 0,
                "likes": 0, "tags": []}  # fmt: skip

    def _tree(self, name):
        rows = []
        for file, content in self.hub.models[name].items():
            row = {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            if len(content) >= LARGE:
                row["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            rows.append(row)
        return rows

    def _file(self, name, revision, file, body):
        content = self.hub.models[name].get(file)
        if revision not in ("main", COMMIT):
            return self._error(404, "RevisionNotFound", "Invalid rev id", body)
        if content is None:
            return self._error(404, "EntryNotFound", "Entry not found", body)
        if body and self.hub.down:
            return self._error(503, "", "down", body)
        large = len(content) >= LARGE
        tag = (hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()
        wanted = self.headers.get("range", "")
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{tag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if large:
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("X-Linked-Etag", f'"{tag}"')
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not body:
            return
        self.hub.got.append((file, wanted))
        stop = self.hub.cut.pop(file, None)
        self.wfile.write(content[start:] if stop is None else content[start:stop])
        if stop is not None:
            self.wfile.flush()
            self.close_connection = True

    def _json(self, content, body):
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if body:
            self.wfile.write(text)

    def _error(self, status, code, message, body):
        text = json.dumps({"error": message}).encode()
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if body:
            self.wfile.write(text)


@contextmanager
def serving():
    """A hub that is served during the block."""
    hub = Hub()
    with listening(type("Handler", (_Handler,), {"hub": hub})) as hub.url:
        yield hub
