"""What is passed on to the process of the Gradio page, how that process ends, and the conversation that it leads.

Gradio itself is not needed here; the page is tested in a browser.
"""

import asyncio
import contextlib
import importlib.util
import os
import socketserver
import stat
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
from kit.model_cli import STARTER, llmctl
from kit.served import refused, served

from llmctl.errors import ConfigError
from llmctl.serve.gradio import talk
from llmctl.serve.gradio.child import Child
from llmctl.serve.gradio.passing import Passing


@pytest.fixture
def short():
    """A folder whose path leaves room for that of a socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextlib.contextmanager
def page(folder):
    """The routes of a page that answers with what it was asked, and the list of that."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            asked.append((self.command, self.path, dict(self.headers), body))
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("set-cookie", "a=b")
            self.end_headers()
            self.wfile.write(b"hello")

        do_POST = do_GET

        def log_message(self, *_):
            pass

    path = str(folder / "page")
    with socketserver.ThreadingUnixStreamServer(path, Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield Passing(path, lambda: True).answer, asked
        running.shutdown()


def test_a_request_of_the_page_is_passed_on_without_the_key_that_other_paths_need(short):
    with page(short) as (gradio, asked), served(keys=["secret"], gradio=gradio) as client:
        assert client.get("/gradio", headers={"authorization": "Bearer secret"}).text == "hello"
        answer = client.post("/gradio/gradio_api/queue/join?x=1", json={"data": ["ä"]})
        assert answer.text == "hello" and client.get("/v1/models").status_code == 401
        assert "default-src 'self'" in answer.headers["content-security-policy"] and "set-cookie" not in answer.headers
        (_, first, headers, _), (method, second, _, body) = asked
    assert (first, method, second) == ("/gradio/", "POST", "/gradio/gradio_api/queue/join?x=1")
    assert body == '{"data":["ä"]}'.encode()
    assert headers["host"] == "localhost" and headers["x-forwarded-proto"] == "http" and "authorization" not in headers


NOT_PASSED = (
    ("POST", "gradio_api/upload"), ("GET", "gradio_api/file=/etc/passwd"), ("GET", "gradio_api/proxy=http://example.org/"),
    ("GET", "assets/../gradio_api/info"), ("GET", "gradio_api/heartbeat/x"), ("GET", "gradio_api/queue/join"),
    ("POST", "gradio_api/call/answer"), ("GET", "monitoring"), ("GET", "//example.org/"),
)  # fmt: skip


def test_nothing_else_is_passed_on_and_the_guard_stands_before_the_page(short):
    with page(short) as (gradio, asked), served(gradio=gradio) as client:
        for method, path in NOT_PASSED:
            json = {} if method == "POST" else None
            assert client.request(method, f"http://localhost/gradio/{path}", json=json).status_code == 404, path
        join = "/gradio/gradio_api/queue/join"
        refused(client.get("/gradio/", headers={"host": "evil.example"}), 403, "does not answer for the host")
        refused(client.post(join, json={}, headers={"origin": "http://evil.example"}), 403, "other sites")
        refused(client.post(join, files={"files": b"x"}), 415, "must be JSON")
        refused(client.post(join, json=["x" * (1 << 20)]), 413, "more than")
        assert not asked


def test_a_page_that_does_not_answer_yet_or_any_more_says_so(short):
    alive = True
    with served(gradio=Passing(str(short / "none"), lambda: alive).answer) as client:
        assert client.get("/gradio/").headers["refresh"] == "1"
        refused(client.get("/gradio/"), 503, "is starting")
        alive = False
        refused(client.get("/gradio/"), 503, "has ended")
    with served() as client:
        refused(client.get("/gradio/"), 404, "there is no such path")


STAND_IN = """
import sys, time
assert sys.stdin.readline().startswith('{"names": ["starter"], "keys": true, "tokens": %d'), "told"
open(sys.argv[1] + "/told", "w").close()
while sys.stdin.buffer.read(): pass
"""


def test_the_process_is_told_what_to_show_and_ends_with_the_server(short, monkeypatch):
    started, popen = [], subprocess.Popen

    def stand_in(command, **options):
        code = STAND_IN % 512
        started.append(popen([sys.executable, "-c", code, *command[3:]], **options))
        return started[0]

    monkeypatch.setattr("llmctl.serve.gradio.child.subprocess.Popen", stand_in)
    monkeypatch.setenv("TMPDIR", str(short))
    monkeypatch.setattr("tempfile.tempdir", None)
    with served() as client, Child() as child:
        model = client.service.model
        folder = Path(child.page).parent
        assert folder.parent == short and stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        child.show(model, True)
        while child.alive() and not (folder / "told").exists():
            pass
        assert child.alive()
    assert started[0].returncode == 0 and not folder.exists()


def test_a_folder_without_room_for_sockets_is_an_error(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    for folder in (tmp_path / "none", long):
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        with pytest.raises(ConfigError, match="name another folder with TMPDIR"):
            Child()
    assert not [*tmp_path.glob("x*/*")]


def test_without_gradio_the_command_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gradio" else find(name))
    _, said = llmctl("serve", STARTER, "--gradio", "--port", 0, code=2)
    assert "llmctl serve --gradio needs gradio" in said and "'paddle-llmctl[page]'" in said


class Replies:
    """An API that gives chunks, and then maybe an error."""

    def __init__(self, *chunks, error=""):
        self.chunked, self.error, self.asked = chunks, error, []

    async def chunks(self, key, body):
        self.asked.append((key, body))
        for number, delta in enumerate(self.chunked):
            yield {"choices": [{"delta": delta}], "usage": {"completion_tokens": number + 1}}
        if self.error:
            raise talk.Refused(self.error)
        yield {"choices": [], "usage": {"completion_tokens": len(self.chunked)}}


USER = {"role": "user", "content": [{"type": "text", "text": "Hi"}], "metadata": None}
SETTINGS = dict(
    key="k", model="m", system="", max_tokens=0, top_k=5.0, top_p=0.5, temperature=0.5, repetition_penalty=1.5
)


def steps(api, messages=(USER,), **settings):
    async def run():
        return [step async for step in talk.answered(api, [*messages], **{**SETTINGS, **settings})]

    return asyncio.run(run())


def test_an_answer_grows_and_ends_with_its_speed(monkeypatch):
    monkeypatch.setattr(talk, "SHOWN_SECONDS", -1)
    api = Replies({"content": "Good"}, {"content": " day"})
    shown = steps(api)
    said = [messages[1]["content"] for messages, _, _ in shown[1:]]
    assert said == ["Good", "Good day", "Good day", "Good day"] and shown[0][0] == [USER]
    assert shown[-1][1].startswith("2 tokens in ") and shown[-1][1].endswith(" a second")
    assert [row["content"] for row in shown[-1][2]["messages"]] == ["Hi", "Good day"]
    ((key, body),) = api.asked
    assert key == "k" and body["stream"] and body["messages"] == [{"role": "user", "content": "Hi"}]
    assert (body["model"], body["top_k"], body["top_p"], body["temperature"], body["repetition_penalty"]) == ("m", 5, 0.5, 0.5, 1.5)  # fmt: skip
    assert "max_tokens" not in body


def test_the_system_message_and_the_limit_are_sent_and_thoughts_are_not():
    thought = {"role": "assistant", "content": "Hm", "metadata": {"title": "Thoughts"}}
    api = Replies({"reasoning_content": "Well"}, {"content": "Yes"})
    shown = steps(
        api, (USER, thought, {"role": "assistant", "content": "No"}, USER), system="Be brief.", max_tokens=7.0
    )
    body = api.asked[0][1]
    assert [row["role"] for row in body["messages"]] == ["system", "user", "assistant", "user"] and body[
        "max_tokens"
    ] == 7
    assert [row["content"] for row in shown[-1][0][-2:]] == ["Well", "Yes"] and shown[-1][0][-2]["metadata"]["title"]


def test_an_answer_that_is_refused_or_cut_says_why_and_keeps_what_there_is():
    assert steps(Replies(error="too long"))[-1][:2] == ([USER], "too long")
    messages, said, _ = steps(Replies({"content": "Go"}, error="stopping"))[-1]
    assert messages[1]["content"] == "Go" and said == "stopping"


def test_undo_regenerate_and_send_change_the_conversation():
    talked = [USER, {"role": "assistant", "content": "Hello"}]
    assert talk.undone(talked) == ([], "Hi") and talk.undone([]) == ([], "")
    assert talk.before_answers(talked) == [USER] == talk.before_answers([USER])
    assert talk.sent("So?", talked) == ("", [*talked, {"role": "user", "content": "So?"}])
    assert talk.sent("So?", [*talked, USER])[1] == talk.sent("So?", talked)[1] and talk.sent(" ", talked) == (
        " ",
        talked,
    )


def test_the_server_tells_names_and_reasons_over_its_socket():
    with served(keys=["secret"]) as client:
        api = talk.Api(Path("nowhere"), "http")
        api._client = httpx.AsyncClient(transport=httpx.ASGITransport(client.app), base_url="http://localhost")
        assert asyncio.run(api.names("secret")) == ["starter"]
        with pytest.raises(talk.Refused, match="API key is missing"):
            asyncio.run(api.names(""))
    with pytest.raises(talk.Refused, match="cannot be reached"):
        asyncio.run(talk.Api(Path("nowhere"), "http").names(""))
