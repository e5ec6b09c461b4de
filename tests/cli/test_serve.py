"""``llmctl serve`` as a process of its own on the loopback interface, asked by OpenAI's client."""

import json
import signal
import socket
import ssl
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from kit.model_cli import STARTER, llmctl
from kit.running import running
from kit.served import QUESTION

GREEDY = {"temperature": 0, "max_tokens": 40}
LONG = {"temperature": 0, "max_tokens": 480, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def server():
    with running() as found:
        yield found


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def ask(client, text=QUESTION, **more):
    return client.chat.completions.create(
        model="starter", messages=[{"role": "user", "content": text}], **{**GREEDY, **more}
    )


def test_openai_s_client_gets_what_the_command_line_answers(client):
    said, _ = llmctl("generate", STARTER, "--prompt", QUESTION, "--max-new-tokens", 40, "--greedy", "--no-stream")
    made = ask(client)
    assert made.choices[0].message.content + "\n" == said and [one.id for one in client.models.list()] == ["starter"]
    assert "".join(one.choices[0].delta.content or "" for one in ask(client, stream=True)) + "\n" == said
    with pytest.raises(openai.BadRequestError, match="did you mean temperature"):
        ask(client, extra_body={"temprature": 1})
    with pytest.raises(openai.NotFoundError, match="there are: starter"):
        client.completions.create(model="other", prompt="Hi")


def test_llmctl_request_prints_what_the_server_answers(server, client, monkeypatch):
    expected = ask(client).choices[0].message.content + "\n"
    words = ["request", QUESTION, "--url", server.url, "--temperature", 0, "--max-new-tokens", 40]
    assert llmctl(*words)[0] == expected == llmctl(*words, "--no-stream")[0]
    assert json.loads(llmctl(*words, "--json", "--system", "Be brief.")[0])["choices"]
    assert "refuses (404): there is no model 'other'" in llmctl(*words, "--name", "other", code=2)[1]
    assert "no server answers" in llmctl("request", "Hi", "--url", "http://127.0.0.1:9", code=2)[1]
    for url in ("localhost:8000", "http://localhost:eight", "http://[half", "http://localhost:99999"):
        assert f"--url {url} is not an address" in llmctl("request", "Hi", "--url", url, code=2)[1]


CHUNKED = "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("reply", "words", "said"),
    [
        (f'200 OK\r\n{CHUNKED}20\r\ndata: {{"choices": []}}\n\n', [], "the answer broke off: IncompleteRead"),
        ('200 OK\r\ncontent-length: 500\r\n\r\n{"a":', ["--no-stream"], "the answer broke off: IncompleteRead"),
        ("500 Oh\r\ncontent-length: 500\r\n\r\n{", [], "the answer broke off: IncompleteRead"),
        ("200 OK\r\ncontent-length: 2\r\n\r\nHi", ["--no-stream"], "does not have the form of OpenAI's API"),
        ('200 OK\r\ncontent-length: 9\r\n\r\ndata: {}\n', [], "does not have the form of OpenAI's API (KeyError: 'choices')"),
    ],
)  # fmt: skip
def test_llmctl_request_says_what_is_wrong_with_an_answer(reply, words, said):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            with server.accept()[0] as one:
                asked = b""
                while not asked.endswith(b"}"):
                    asked += one.recv(1 << 16)
                one.sendall(f"HTTP/1.1 {reply}".encode())

        with ThreadPoolExecutor(1) as pool:
            pool.submit(answer)
            url = f"http://127.0.0.1:{server.getsockname()[1]}"
            assert said in llmctl("request", "Hi", "--url", url, *words, code=2)[1]


def test_answers_in_a_crowd_are_those_given_alone(client):
    texts = [
        f"Deny this: {name} {what}."
        for name in ("Tom", "Mia", "Leo", "Ida")
        for what in ("has a red kite", "likes tea", "lives in Rome", "is old")
    ]
    options = [{}, {"temperature": 0.9, "seed": 4}]
    alone = [ask(client, text, **options[index % 2]).choices[0].message.content for index, text in enumerate(texts)]
    with ThreadPoolExecutor(16) as pool:
        crowd = [
            *pool.map(
                lambda row: ask(client, row[1], **options[row[0] % 2]).choices[0].message.content, enumerate(texts)
            )
        ]
    assert crowd == alone and len(set(alone)) > 8


def counted(metrics):
    """How often answers of a chat had a status, by the name of the counter."""
    return Counter({name: value for name, value in metrics.items() if name.startswith('requests_total{path="/v1/chat')})


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_answers(server, stream):
    earlier, status = server.metrics(), f'status="{200 if stream else 499}"'
    body = json.dumps({"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 480, "ignore_eos": True,
                       "n": 16, "stream": stream}).encode()  # fmt: skip
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as link:
        link.sendall(head.encode() + body)
        if stream:
            assert link.recv(100).startswith(b"HTTP/1.1 200")
        while not server.metrics()["engine_running"]:
            pass
    while server.metrics()["answers_held"]:
        pass
    after = server.metrics()
    assert after["engine_running"] <= 16
    assert after["engine_computed_tokens_total"] - earlier["engine_computed_tokens_total"] < 16 * 400
    while not (told := counted(server.metrics()) - counted(earlier)):
        pass
    assert len(told) == 1 and status in next(iter(told))


def test_half_requests_slow_readers_and_clients_that_half_close_hold_nobody_up(server, client):
    body = json.dumps({"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 480, "ignore_eos": True,
                       "n": 8, "stream": True}).encode()  # fmt: skip
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    expected = ask(client).choices[0].message.content
    links = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(320)]
    try:
        for link in links[:300]:
            link.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc")
        for link in links[300:316]:  # they never read
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            link.sendall(head.encode() + body)
        for link in links[316:318]:
            link.sendall(head.encode() + body)
            link.shutdown(socket.SHUT_WR)
        links[318].sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
        assert ask(client).choices[0].message.content == expected
        got = b""
        while got.count(b"HTTP/1.1 200") < 2:
            got += links[318].recv(1000)
    finally:
        for link in links:
            link.close()
    while server.metrics()["answers_held"]:
        pass
    assert ask(client).choices[0].message.content == expected


def test_sigterm_under_load_lets_answers_end_and_exits_with_0():
    with running() as other, openai.OpenAI(base_url=f"{other.url}/v1", api_key="none", max_retries=0) as client:
        streams = [ask(client, **LONG, stream=True) for _ in range(24)]
        firsts = [next(stream) for stream in streams]
        other.process.send_signal(signal.SIGTERM)
        with ThreadPoolExecutor(24) as pool:
            rests = [*pool.map(list, streams)]
        assert all(first.choices for first in firsts) and len(rests) == 24
        assert {rest[-1].choices[0].finish_reason for rest in rests} == {"length"}
        assert other.process.wait(30) == 0
        with pytest.raises(openai.APIConnectionError):
            ask(client)
        assert not [line for line in other.log if "Traceback" in line]


def test_answers_that_outlive_the_grace_end_with_an_error():
    with (
        running("--grace", "0.0") as other,
        openai.OpenAI(base_url=f"{other.url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = ask(client, **LONG, n=16, stream=True)
        next(stream)
        other.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="stopping"):
            list(stream)
        assert other.process.wait(30) == 0


def test_the_log_has_no_prompts_and_no_keys_and_paddle_is_not_loaded(tmp_path):
    (tmp_path / "keys").write_text("# keys\nsecret-key\n")
    (tmp_path / "serve.yaml").write_text(f"server: {{api_key_file: {tmp_path / 'keys'}}}\nlimits: {{requests: 5}}\n")
    with running("--config", tmp_path / "serve.yaml") as other:
        assert "libpaddle" not in Path(f"/proc/{other.process.pid}/maps").read_text()
        with pytest.raises(openai.AuthenticationError):
            ask(openai.OpenAI(base_url=f"{other.url}/v1", api_key="wrong-key"))
        client = openai.OpenAI(base_url=f"{other.url}/v1", api_key="secret-key", max_retries=0)
        assert ask(client, "Deny this: Xaverl is old.").choices
        with pytest.raises(openai.BadRequestError, match="answers 5 at a time"):
            ask(client, n=6)
        assert other.end() == 0
    text = "".join(other.log)
    assert "POST /v1/chat/completions 200" in text and "POST /v1/chat/completions 401" in text
    assert not [word for word in ("Xaverl", "secret-key", "wrong-key") if word in text]


def test_a_log_on_a_full_disk_holds_nobody_up(tmp_path, monkeypatch):
    path, told = tmp_path / "llmctl.sock", socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(tmp_path / "notify"))
    told.settimeout(60)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    words = [sys.executable, "-m", "llmctl", "serve", STARTER, "--unix-socket", path, "--name", "starter"]
    with told, open("/dev/full", "w") as full:
        process = subprocess.Popen(list(map(str, words)), stderr=full)
        try:
            assert told.recv(99) == b"READY=1"
            with httpx.Client(base_url="http://localhost", transport=httpx.HTTPTransport(uds=str(path))) as client:
                body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 3}
                found = [client.post("/v1/chat/completions", json=one).status_code for one in (body, body, {})]
            process.send_signal(signal.SIGTERM)
            assert found == [200, 200, 400] and process.wait(30) == 0
        finally:
            process.kill()
            process.wait()


def test_https_and_keys_that_are_read_again(tmp_path):
    files = [tmp_path / "cert.pem", tmp_path / "key.pem"]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)  # fmt: skip
    keys = tmp_path / "keys"
    keys.write_text("old-key\n")
    with running("--tls-certificate", files[0], "--tls-key", files[1], "--api-key-file", keys) as other:
        context = ssl.create_default_context(cafile=files[0])
        with httpx.Client(base_url=other.url, verify=context) as client:

            def status(key):
                return client.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code

            assert (status("old-key"), status("new-key")) == (200, 401)
            keys.write_text("new-key\n")
            other.process.send_signal(signal.SIGHUP)
            while status("new-key") != 200:
                pass
            assert status("old-key") == 401
            keys.write_text("new-key nobody\n")
            other.process.send_signal(signal.SIGHUP)
            while not any("stay as they were" in line for line in other.log):
                pass
            assert status("new-key") == 200


def test_a_socket_in_the_file_system_and_a_notice_for_systemd(tmp_path, monkeypatch):
    path, told = tmp_path / "llmctl.sock", socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    (tmp_path / "serve.yaml").write_text("server: {log: json}\n")
    with told, running("--unix-socket", path, "--config", tmp_path / "serve.yaml") as other:
        assert told.recv(99) == b"READY=1" and path.stat().st_mode & 0o777 == 0o660
        with httpx.Client(base_url="http://localhost", transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("/v1/models").json()["data"][0]["id"] == "starter"
        assert other.end() == 0 and told.recv(99) == b"STOPPING=1"
        assert any(json.loads(line).get("path") == "/v1/models" for line in other.log if line[0] == "{")


def test_the_help_imports_neither_the_server_nor_numpy():
    code = (
        "import sys; from llmctl.cli import cli; cli(['serve', '--help'], standalone_mode=False); "
        "sys.exit(bool({'starlette', 'uvicorn', 'numpy', 'paddle'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--api-key-file" in done.stdout


@pytest.mark.parametrize("words, part", [
    (["--config", "none.yaml"], "does not exist"), (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1"), (["--api-key-file", "none.txt"], "none.txt cannot be read"),
    (["--api-key", ""], "--api-key is empty"),
])  # fmt: skip
def test_what_cannot_be_served_is_an_error_at_once(words, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert part in llmctl("serve", STARTER, *words, code=2)[1]


def test_an_unknown_key_of_the_configuration_is_an_error(tmp_path):
    (tmp_path / "serve.yaml").write_text("server: {prot: 8000}\n")
    assert "did you mean server.port?" in llmctl("serve", STARTER, "--config", tmp_path / "serve.yaml", code=2)[1]


def test_adapters_are_asked_for_by_name(tmp_path):
    from llmctl.testing.tiny import write_adapter

    write_adapter(tmp_path / "formal", STARTER, 1)
    with running("--adapter", f"formal={tmp_path / 'formal'}") as other:
        client = openai.OpenAI(base_url=f"{other.url}/v1", api_key="none", max_retries=0)
        assert [one.id for one in client.models.list()] == ["starter", "formal"]
        made = client.completions.create(model="formal", prompt="Tom has", temperature=0)
        assert made.model == "formal" and made.choices[0].text
        with pytest.raises(openai.NotFoundError, match="starter, formal"):
            client.models.retrieve("other")
