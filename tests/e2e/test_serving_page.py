"""The commands and the Python that docs/serving.md shows work as shown, against servers that its own commands start."""

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from kit.pages import config_of
from kit.readme import ROOT, STARTER, shown

from llmctl.testing.tiny import write_adapter

PAGE = "docs/serving.md"


@contextlib.contextmanager
def started(line):
    """The server that a command starts, on a free port of the loopback interface; its address."""
    words = shlex.split(line)[1:] + ["--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen([sys.executable, "-m", "llmctl", *words], stderr=subprocess.PIPE, text=True)
    try:
        said = []
        for text in process.stderr:
            said.append(text)
            if found := re.search(r"http://127\.0\.0\.1:\d+", text):
                yield found[0]
                break
        else:
            raise AssertionError(said)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def curl(line, address):
    """The response to a command of curl."""
    _, url, *rest = shlex.split(line)
    given = dict(zip(rest[::2], rest[1::2], strict=True))
    headers = dict(rest[place + 1].split(": ") for place in range(0, len(rest), 2) if rest[place] == "-H")
    url = url.replace("http://localhost:8000", address)
    return httpx.post(url, content=given["-d"], headers=headers) if "-d" in given else httpx.get(url)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(STARTER / "model", Path("path") / "to" / "model")
    for seed, name in enumerate(("formal", "short")):
        Path("adapters").mkdir(exist_ok=True)
        write_adapter(Path("adapters") / name, Path("path/to/model"), seed)
    Path("keys.txt").write_text("one-key\n")
    Path("serve.yaml").write_text(config_of(PAGE))


def test_the_commands_and_the_code_work(folder):
    lines = shown(PAGE)
    servers = [line for line in lines if line.startswith("llmctl serve")]
    requests = [line for line in lines if line.startswith("curl ")]
    assert len(lines) == len(servers) + len(requests) and len(servers) == 4 and len(requests) == 8
    with started(servers[0]) as address:
        models, chat, form, call, message, paddlenlp = (curl(line, address) for line in requests if "lora" not in line)
        assert [row["id"] for row in models.json()["data"]] == ["model"]
        text = chat.json()["choices"][0]["message"]["content"]
        assert text.startswith(message.json()["content"][0]["text"])
        assert call.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "clock"
        person = json.loads(form.json()["choices"][0]["message"]["content"])
        assert set(person) == {"name", "age"} and 0 <= person["age"] <= 99
        assert [json.loads(line)["error_code"] for line in paddlenlp.text.splitlines()]
        (code,) = re.findall(r"```python\n(.*?)```", (ROOT / PAGE).read_text(encoding="utf-8"), re.DOTALL)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code.replace("http://localhost:8000", address), {})
        assert printed.getvalue() == text
    with started(servers[1]) as address:
        assert [row["id"] for row in httpx.get(f"{address}/v1/models").json()["data"]] == ["model", "formal", "short"]
    (keys,) = re.findall(r"```text\n(# one key.*?)```", (ROOT / PAGE).read_text(encoding="utf-8"), re.DOTALL)
    Path("keys.txt").write_text(f"{keys}admin-key admin\n")
    with started(f"{servers[0]} --api-key-file keys.txt") as address:
        load, unload = (curl(line, address) for line in requests if "lora" in line)
        assert load.json()["id"] == "brief" and unload.json()["deleted"]
    with started(servers[2]) as address:
        assert (
            httpx.get(f"{address}/v1/models", headers={"host": "models.example.org"}).json()["data"][0]["id"]
            == "starter"
        )
    with started(servers[3]) as address:
        assert httpx.get(f"{address}/v1/models").status_code == 401
        headers = {"host": "models.example.org", "authorization": "Bearer one-key"}
        assert httpx.get(f"{address}/v1/models", headers=headers).status_code == 200
