"""What the server says of itself: capabilities, and its API for programs and people."""

import re

import jsonschema
import pytest
from kit.served import QUESTION, served

from llmctl.serve.apis.fields import REFUSED
from llmctl.serve.apis.openapi import BODIES, READ


@pytest.fixture(scope="module")
def client():
    with served() as client:
        yield client


def test_capabilities_are_those_of_the_model_and_its_family(client):
    found = client.get("/v1/capabilities").json()
    assert (found["id"], found["family"], found["max_model_len"]) == ("starter", "llama", 512)
    assert found["response_format"][-1] == "grammar" and found["chat"]["tools"] == "system message"
    assert found["support"]["sft"]["label"] in ("yes", "unverified") and found["prompt_logprobs"] is True


def test_every_route_is_described_and_every_body_is_checked_as_it_says(client):
    document = client.get("/openapi.json").json()
    said = client.get("/nothing").json()["error"]["message"]
    routes = set(re.findall(r"(?:GET|POST) (/\S*?)(?:, |$)", said)) - {"/", "/docs", "/openapi.json", "/v1/embeddings"}
    assert (
        {path.replace("{name}", "{name:path}") for path in document["paths"]}
        == routes
        == {path.replace("{name}", "{name:path}") for path in (*BODIES, *READ)}
    )
    for path, (_, rows, needed) in BODIES.items():
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        jsonschema.Draft202012Validator.check_schema(schema)
        assert set(schema["properties"]) == {row.name for row in rows if row.effect != REFUSED}
        lacking = client.post(path, json={})
        assert lacking.status_code == (403 if "lora" in path else 400)
        assert "lora" in path or not needed or needed[0] in lacking.text
    good = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 3}
    schema = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.validate(good, schema)


def test_the_page_of_the_api_shows_every_field_and_loads_nothing(client):
    response = client.get("/docs")
    assert "script-src 'none'" in response.headers["content-security-policy"]
    assert not re.search(r"https?:|src=|<script", response.text)
    assert all(f"<code>{row.name}</code>" in response.text for _, rows, _ in BODIES.values() for row in rows)
