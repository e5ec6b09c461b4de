"""Adapters that are loaded and unloaded while others are answered, against a model that was loaded with them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from kit.paths import STARTER
from kit.served import QUESTION, chat, refused, served

from llmctl import LLM, SamplingParams
from llmctl.testing.tiny import write_adapter

MODEL = STARTER / "model"
GREEDY = {"temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate("abc"):
        write_adapter(root / name, MODEL, seed)
    return {name: root / name for name in "abc"}


@pytest.fixture(scope="module")
def expected(folders):
    with LLM(MODEL, engine="fused", adapter=folders) as llm:
        messages, params = [{"role": "user", "content": QUESTION}], SamplingParams(max_new_tokens=24)
        return {name: llm.chat(messages, params, adapter=name).text for name in folders} | {
            "": llm.chat(messages, params).text
        }


def said(client, model="starter"):
    return chat(client, model=model, **GREEDY).json()["choices"][0]["message"]["content"]


def test_adapters_come_and_go_while_others_are_answered(folders, expected):
    with served(keys=["root admin", "someone"]) as client:
        client.headers["authorization"] = "Bearer root"

        def load(name, status=200):
            response = client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folders[name])})
            assert response.status_code == status, response.text

        alone = chat(client, temperature=0, ignore_eos=True, max_tokens=300, n=4).json()["choices"]
        with ThreadPoolExecutor(1) as pool:
            long = pool.submit(chat, client, temperature=0, ignore_eos=True, max_tokens=300, n=4)
            while not client.service.bridge.gauges()["engine_running"]:
                pass
            load("a")
            assert said(client, "a") == expected["a"]
            assert long.result().json()["choices"] == alone
        load("b")
        assert [said(client, name) for name in "ab"] == [expected["a"], expected["b"]] and said(client) == expected[""]
        assert [row["id"] for row in client.get("/v1/models").json()["data"]] == ["starter", "a", "b"]
        assert client.post("/v1/unload_lora_adapter", json={"lora_name": "a"}).json()["deleted"]
        refused(chat(client, model="a"), 404, "there are: starter, b", "model")
        load("c")
        assert [said(client, name) for name in "cb"] == [expected["c"], expected["b"]]
        # The place of the first was free, and the keys and values that it computed are not found again.
        assert client.service.model.adapters.place("c") == 0
        load("a")
        assert said(client, "a") == expected["a"] and said(client, "c") == expected["c"]
        rows = [chat(client, max_tokens=1, model=name).json() for name in ("starter", "a", "b", "c", "a")]
        found = [row["system_fingerprint"] for row in rows]
        assert found[1] == found[4] and len({*found}) == 4


def test_who_may_load_what(folders, tmp_path):
    with served(keys=["root admin", "someone"], adapter={"a": folders["a"]}) as client:
        client.headers["authorization"] = "Bearer someone"
        body = {"lora_name": "b", "lora_path": str(folders["b"])}
        refused(client.post("/v1/load_lora_adapter", json=body), 403, "class admin")
        refused(client.post("/v1/unload_lora_adapter", json={"lora_name": "a"}), 403, "class admin")
        client.headers["authorization"] = "Bearer root"
        for more, part, param in (
            ({"lora_name": "a"}, "that no model or adapter has", "lora_name"), ({"lora_name": "starter"}, "that no model or adapter has", "lora_name"),
            ({"lora_path": str(tmp_path / "no")}, "no", "lora_path"), ({"lora_path": str(MODEL)}, "adapter", "lora_path"),
        ):  # fmt: skip
            refused(client.post("/v1/load_lora_adapter", json={**body, **more}), 400, part, param)
        refused(client.post("/v1/unload_lora_adapter", json={"lora_name": "b"}), 404, "there are: a", "lora_name")
        assert client.get("/healthz").status_code == 200
    with served() as client:
        refused(client.post("/v1/load_lora_adapter", json=body), 403, "class admin")
