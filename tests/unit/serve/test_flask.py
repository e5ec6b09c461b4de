"""The blueprint in a Flask application: the answers of the server."""

import json

import pytest
from flask import Flask
from kit.paths import STARTER
from kit.served import QUESTION, chat, served
from openai.types.chat import ChatCompletion

from llmctl.config.serve import ServeConfig
from llmctl.serve.flask import Answering

GREEDY = {"temperature": 0, "max_tokens": 24}
USER = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def blueprint():
    config = ServeConfig()
    config.model.name = "starter"
    found = Answering(STARTER / "model", config, batch_size=4)
    yield found
    found.close()


@pytest.fixture
def client(blueprint):
    app = Flask("app")
    app.register_blueprint(blueprint)
    return app.test_client()


def test_answers_are_those_of_the_server_whole_and_streamed(client):
    made = ChatCompletion.model_validate_json(
        client.post("/v1/chat/completions", json={"messages": USER, **GREEDY}).data, strict=True
    )
    with served() as other:
        assert made.choices[0].message.content == chat(other, **GREEDY).json()["choices"][0]["message"]["content"]
    streamed = client.post("/v1/chat/completions", json={"messages": USER, "stream": True, **GREEDY})
    lines = [line for line in streamed.text.split("\n\n") if line]
    assert streamed.mimetype == "text/event-stream" and lines[-1] == "data: [DONE]"
    pieces = [json.loads(line[6:])["choices"][0]["delta"].get("content") or "" for line in lines[:-1]]
    assert "".join(pieces) == made.choices[0].message.content
    said = client.post("/api/chat", json={"context": QUESTION, "temperature": 0, "max_length": 24})
    texts = [json.loads(line)["result"]["response"]["utterance"] for line in said.text.splitlines()]
    assert "".join(texts) == made.choices[0].message.content


def test_errors_have_the_form_of_the_api(client):
    wrong = client.post("/v1/chat/completions", json={"messages": USER, "temprature": 1})
    assert wrong.status_code == 400 and "did you mean temperature" in wrong.json["error"]["message"]
    assert client.post("/v1/chat/completions", data="{").status_code == 415
    assert client.post("/v1/chat/completions", data="{", content_type="application/json").status_code == 400
    assert client.post("/api/chat", json={}).json["error_code"] == 1


def test_a_client_that_leaves_ends_its_answer(client, blueprint):
    body = {"messages": USER, "temperature": 0, "ignore_eos": True, "stream": True, "max_tokens": 400, "n": 4}
    response = client.post("/v1/chat/completions", json=body, buffered=False)
    next(iter(response.iter_encoded()))
    response.close()
    assert blueprint.service.admission.admitted == 0
