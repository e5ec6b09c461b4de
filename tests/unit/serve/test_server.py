"""Connections on which a request does not go on, the load that is admitted, and the text of metrics."""

import asyncio
import time
from types import SimpleNamespace

import pytest
import uvicorn
from kit.served import served

from llmctl.serve import server
from llmctl.serve.access import guard
from llmctl.serve.access.guard import Guard
from llmctl.serve.access.keys import Keys
from llmctl.serve.admission import Admission
from llmctl.serve.metrics import Metrics
from llmctl.serve.problems import Problem


async def hello(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


async def talk(app, *parts):
    """What a client gets for parts of requests, until the server ends the connection."""
    bound = server.listen("127.0.0.1", 0)
    config = uvicorn.Config(app, http=server.HeadInTime, ws="none", lifespan="off", log_config=None)
    running = server._Server(config, SimpleNamespace(bridge=SimpleNamespace(dead=False)), 0, lambda: None)
    task = asyncio.ensure_future(running.serve([bound]))
    try:
        reader, writer = await asyncio.open_connection(*bound.getsockname())
        got = b""
        for part in parts:
            writer.write(part)
            if part == GET:
                got += await reader.readuntil(b"hi")
        return got + await asyncio.wait_for(reader.read(), 4)
    finally:
        writer.close()
        running.should_exit = True
        await task


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("parts", [[], [b"GET / HT"], [GET, b"GET / HTTP/1.1\r\nHost"]])
def test_a_request_whose_head_does_not_come_is_cut(monkeypatch, parts):
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.05)
    got = asyncio.run(talk(hello, *parts))
    assert got.endswith(b"hi") if parts[:1] == [GET] else got == b""


def test_a_request_whose_body_does_not_come_is_refused(monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.05)
    app = Guard(hello, Keys(), (), 100, Metrics(), {"/": "POST"})
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    got = asyncio.run(talk(app, head))
    assert got.startswith(b"HTTP/1.1 408") and b"has not come within" in got


def test_what_fails_in_the_server_is_told_without_what_the_user_wrote(caplog):
    async def broken(scope, receive, send):
        raise ValueError(scope["path"])

    app = Guard(broken, Keys(), (), 100, Metrics(), {})
    got = asyncio.run(talk(app, b"GET /secret HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
    assert got.startswith(b"HTTP/1.1 500") and b"req-" in got
    assert "ValueError" in caplog.text and "secret" not in caplog.text


def test_the_port_must_be_free():
    with server.listen("127.0.0.1", 0) as bound, pytest.raises(Exception, match="choose others with --host and --port"):
        server.listen("127.0.0.1", bound.getsockname()[1])


def test_a_failed_engine_ends_the_server_with_code_1(caplog):
    async def run():
        bridge = SimpleNamespace(dead=True)
        service = SimpleNamespace(stopping=False, abandon=lambda: None, bridge=bridge)
        config = uvicorn.Config(hello, ws="none", lifespan="off", log_config=None)
        running = server._Server(config, service, 0, lambda: None)
        await asyncio.wait_for(running.serve([server.listen("127.0.0.1", 0)]), 10)
        return running.code

    assert asyncio.run(run()) == 1 and "the engine has failed" in caplog.text


def test_admission_counts_answers_and_waiting_tokens():
    admission = Admission(answers=4, tokens=100)
    admission.enter(3, 500)
    with pytest.raises(Problem, match="3 of at most 4 answers run or wait") as busy:
        admission.enter(2, 1)
    assert (busy.value.status, busy.value.headers) == (429, {"retry-after": "1"})
    with pytest.raises(Problem, match="500 prompt tokens wait, and at most 100 may"):
        admission.enter(1, 1)
    admission.prompts_done(500)
    admission.enter(1, 90)
    for _ in range(200):
        admission.admitted += 1
        admission.leave(1, 1000.0)
    assert admission.wait() == 60 and (admission.admitted, admission.waiting) == (4, 90)


def test_metrics_are_in_the_text_format_of_prometheus():
    metrics = Metrics()
    metrics.count("requests_total", 'path="/x",status="200"', 2)
    for seconds in (0.005, 0.2, 1000):
        metrics.time("request_seconds", seconds)
    lines = metrics.text({"answers_held": 3}).splitlines()
    assert (
        "# TYPE llmctl_requests_total counter" in lines and 'llmctl_requests_total{path="/x",status="200"} 2' in lines
    )
    assert "# TYPE llmctl_answers_held gauge" in lines and "llmctl_answers_held 3" in lines
    counts = [int(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("llmctl_request_seconds_bucket")]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == 3 and "llmctl_request_seconds_count 3" in lines


def test_an_engine_without_progress_is_not_ready(monkeypatch):
    from kit.served import served

    with served() as client:
        engine = client.service.bridge._backend.engine
        monkeypatch.setattr(type(engine), "busy", property(lambda self: True))
        client.service.bridge._moved = time.monotonic() - 1000
        assert client.get("/readyz").status_code == 503 and client.get("/healthz").status_code == 503
        monkeypatch.undo()
        assert client.get("/readyz").status_code == 200


def test_a_client_whose_small_body_is_refused_reads_the_answer_on_the_same_connection():
    with served(keys=["secret"]) as client:
        for more in ({"content": b"x" * 60_000}, {"content": (b"y" * 100 for _ in range(50))}):
            refused = client.post("/tokenize", headers={"content-type": "text/plain"}, **more)
            assert refused.status_code == 401 and "connection" not in refused.headers
        large = client.post("/tokenize", content=b"x" * 100_000)
        assert large.status_code == 401 and large.headers["connection"] == "close"
