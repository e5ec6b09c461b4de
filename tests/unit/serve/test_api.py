"""The HTTP API over the starter model: what OpenAI's client expects, against the engine used directly."""

import base64
import json
import re
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.paths import STARTER
from kit.served import QUESTION, chat, chunks, refused, served
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from llmctl import LLM, SamplingParams
from llmctl.serve.apis.openapi import BODIES

GREEDY = {"temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def client():
    with served() as client:
        yield client


@pytest.fixture(scope="module")
def direct():
    with LLM(STARTER / "model", engine="fused") as llm:
        yield llm


def test_a_chat_completion_is_what_the_engine_answers(client, direct):
    response = chat(client, **GREEDY)
    made = ChatCompletion.model_validate_json(response.content, strict=True)
    expected = direct.chat([{"role": "user", "content": QUESTION}], SamplingParams(max_new_tokens=24))
    assert made.choices[0].message.content == expected.text and made.choices[0].finish_reason == "length"
    assert made.usage.completion_tokens == 24 and made.usage.prompt_tokens == expected.usage.prompt_tokens
    assert made.model == "starter" and response.headers["x-request-id"]


@pytest.mark.parametrize("more", [
    {}, {"stop": ["kite", "bea"]}, {"logprobs": True, "top_logprobs": 2}, {"n": 3, "temperature": 1, "seed": 5},
    {"temperature": 0.8, "seed": 7, "top_k": 20, "min_p": 0.01, "top_p": 0.9, "presence_penalty": 0.5,
     "frequency_penalty": 0.2, "repetition_penalty": 1.1},
])  # fmt: skip
def test_a_streamed_answer_equals_the_whole_one(client, more):
    asked = {**GREEDY, **more}
    whole = ChatCompletion.model_validate_json(chat(client, **asked).content, strict=True)
    pieces = chunks(chat(client, **asked, stream=True, stream_options={"include_usage": True}))
    found = [ChatCompletionChunk.model_validate(piece) for piece in pieces]
    assert found[-1].choices == [] and found[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(one.usage is None for one in found[:-1])
    for choice in whole.choices:
        mine = [row for one in found[:-1] for row in one.choices if row.index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert "".join(row.delta.content or "" for row in mine) == choice.message.content
        assert [row.finish_reason for row in mine if row.finish_reason] == [choice.finish_reason]
        assert mine[-1].finish_reason and mine[-1].delta.content is None
        if more.get("logprobs"):
            scores = [score for row in mine if row.logprobs for score in row.logprobs.content]
            assert scores == choice.logprobs.content and "".join(one.token for one in scores) == choice.message.content


def test_the_fingerprint_is_that_of_the_model_in_answers_and_chunks(client):
    expected = client.get("/v1/capabilities").json()["system_fingerprint"]
    assert re.fullmatch("fp_[0-9a-f]{10}", expected)
    body = {"prompt": "Tom", **GREEDY}
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    found = [chat(client, **GREEDY).json(), client.post("/v1/completions", json=body).json()]
    found += chunks(chat(client, **GREEDY, **usage)) + chunks(client.post("/v1/completions", json={**body, **usage}))
    assert {row["system_fingerprint"] for row in found} == {expected}
    with served() as again, served(weights="int8") as other:
        assert chat(again, max_tokens=1).json()["system_fingerprint"] == expected
        assert chat(other, max_tokens=1).json()["system_fingerprint"] != expected


def test_log_probabilities_are_those_of_the_engine(client, direct):
    made = chat(client, **GREEDY, logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    expected = direct.chat(
        [{"role": "user", "content": QUESTION}], SamplingParams(max_new_tokens=24, logprobs=2)
    ).logprobs
    assert [row["logprob"] for row in made] == pytest.approx([score.logprob for score in expected], abs=1e-4)
    assert [len(row["top_logprobs"]) for row in made] == [2] * 24
    assert all(bytes(row["bytes"]).decode() == row["token"] for row in made)
    assert [
        row["top_logprobs"] for row in chat(client, **GREEDY, logprobs=True).json()["choices"][0]["logprobs"]["content"]
    ] == [[]] * 24


def test_a_stop_string_is_left_out_and_ends_the_answer(client):
    whole = chat(client, **GREEDY).json()["choices"][0]["message"]["content"]
    for stop in (whole[5:9], whole[7:20]):
        made = chat(client, **GREEDY, stop=stop).json()
        assert made["choices"][0]["message"]["content"] == whole[: whole.index(stop)]
        assert made["choices"][0]["finish_reason"] == "stop" and made["usage"]["completion_tokens"] < 24


def test_stop_tokens_end_tokens_and_biases_reach_the_engine(client):
    plain = chat(client, **GREEDY, logprobs=True).json()["choices"][0]
    ids = client.post("/tokenize", json={"prompt": plain["message"]["content"], "add_special": False}).json()["tokens"]
    stopped = chat(client, **GREEDY, stop_token_ids=[ids[3]]).json()
    assert (
        stopped["usage"]["completion_tokens"] == ids.index(ids[3]) and stopped["choices"][0]["finish_reason"] == "stop"
    )
    other = chat(client, **GREEDY, logit_bias={str(ids[0]): -100}).json()["choices"][0]["message"]["content"]
    assert other != plain["message"]["content"]
    ended = chat(client, temperature=0).json()
    longer = chat(client, temperature=0, ignore_eos=True, max_tokens=ended["usage"]["completion_tokens"] + 5).json()
    assert ended["choices"][0]["finish_reason"] == "stop" and longer["choices"][0]["finish_reason"] == "length"
    more = chat(client, temperature=0, min_tokens=ended["usage"]["completion_tokens"] + 3).json()
    assert more["usage"]["completion_tokens"] >= ended["usage"]["completion_tokens"] + 3


def test_without_a_temperature_answers_are_drawn_as_openai_does(client):
    texts = {chat(client, max_tokens=24).json()["choices"][0]["message"]["content"] for _ in range(4)}
    assert len(texts) > 1


def test_completions_of_texts_and_of_tokens_are_the_same(client):
    ids = client.post("/tokenize", json={"prompt": "Tom has"}).json()["tokens"]
    made = Completion.model_validate_json(
        client.post("/v1/completions", json={"prompt": ["Tom has", "The red"], "n": 2, **GREEDY}).content, strict=True
    )
    assert [choice.index for choice in made.choices] == [0, 1, 2, 3]
    assert made.choices[0].text == made.choices[1].text != made.choices[2].text
    assert made.usage.completion_tokens == 96 and made.usage.prompt_tokens < 4 * len(ids)
    by_ids = client.post("/v1/completions", json={"prompt": ids, **GREEDY}).json()
    assert by_ids["choices"][0]["text"] == made.choices[0].text
    streamed = chunks(client.post("/v1/completions", json={"prompt": ids, "stream": True, **GREEDY}))
    assert "".join(one["choices"][0]["text"] for one in streamed) == made.choices[0].text
    assert client.post("/v1/completions", json={"prompt": ids}).json()["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("stream", [False, True])
def test_echo_has_the_log_probabilities_of_the_prompt_as_lm_eval_asks(client, direct, stream):
    ids = client.post("/tokenize", json={"prompt": "Tom has a red kite."}).json()["tokens"]
    body = {
        "prompt": [ids],
        "max_tokens": 1,
        "logprobs": 1,
        "echo": True,
        "temperature": 0,
        "seed": 1234,
        "stream": stream,
    }
    response = client.post("/v1/completions", json=body)
    if stream:
        rows = [one["choices"][0] for one in chunks(response)]
        made = {
            key: [v for row in rows if row["logprobs"] for v in row["logprobs"][key]] for key in rows[0]["logprobs"]
        }
        text = "".join(row["text"] for row in rows)
    else:
        made, text = response.json()["choices"][0]["logprobs"], response.json()["choices"][0]["text"]
    expected = direct.score([ids])[0]
    assert made["token_logprobs"][0] is None and len(made["tokens"]) == len(ids) + 1
    assert made["token_logprobs"][1:-1] == pytest.approx(expected.logprobs[1:], abs=1e-3)
    assert all(
        score <= max(top.values())
        for score, top in list(zip(made["token_logprobs"], made["top_logprobs"], strict=True))[1:]
    )
    assert made["text_offset"] == sorted(made["text_offset"]) and "Tom has a red kite." in text


def test_echo_without_an_answer(client):
    made = client.post("/v1/completions", json={"prompt": "Tom has", "echo": True, "max_tokens": 0}).json()
    assert made["choices"][0]["text"] == "Tom has" and made["usage"]["completion_tokens"] == 0


def test_models_and_unknown_models(client):
    rows = client.get("/v1/models").json()["data"]
    assert [row["id"] for row in rows] == ["starter"] and client.get("/v1/models/starter").json() == rows[0]
    refused(client.get("/v1/models/other"), 404, "there are: starter", "model")
    refused(chat(client, model="other"), 404, "there are: starter", "model")
    refused(client.get("/nothing"), 404, "POST /v1/chat/completions")
    for method, path, there in (
        ("GET", "/tokenize", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("TRACE", "/metrics", "GET, HEAD"),
    ):
        other = client.request(method, path, content=b"")
        refused(other, 405, f"{method} is not answered here")
        assert sorted(other.headers["allow"].split(", ")) == there.split(", ")
    refused(client.post("/nothing", content=b" " * (2 << 20)), 413, "1048576 bytes")


def test_tokens_and_texts(client):
    made = client.post("/tokenize", json={"content": "Tom has a kite."}).json()
    assert made["count"] == len(made["tokens"]) and made["max_model_len"] == 512
    plain = client.post("/tokenize", json={"prompt": "Tom has a kite.", "add_special_tokens": False}).json()["tokens"]
    whole = client.post("/tokenize", json={"prompt": "Tom has a kite."}).json()["tokens"]
    assert made["tokens"] == plain == whole[1:] and whole == client.post(
        "/tokenize", json={"content": "Tom has a kite.", "add_special": True}).json()["tokens"]  # fmt: skip
    pieces = client.post("/tokenize", json={"prompt": "Tom 你", "with_pieces": True}).json()["tokens"]
    ids = client.post("/tokenize", json={"prompt": "Tom 你"}).json()["tokens"]
    assert [row["id"] for row in pieces] == ids and pieces[0]["piece"]
    written = b"".join(one.encode() if isinstance(one := row["piece"], str) else bytes(one) for row in pieces[1:])
    assert written.decode().strip() == "Tom 你" and any(isinstance(row["piece"], list) for row in pieces)
    assert client.post("/detokenize", json={"tokens": plain}).json()["prompt"] == "Tom has a kite."
    talk = client.post("/tokenize", json={"messages": [{"role": "user", "content": QUESTION}]}).json()
    assert talk["count"] == chat(client, **GREEDY).json()["usage"]["prompt_tokens"]


@pytest.mark.parametrize("more, part, param", [
    ({"max_tokens": 0}, "at least 1", "max_tokens"), ({"max_tokens": 1.5}, "expected an integer", "max_tokens"),
    ({"temperature": -1}, "at least 0", "temperature"), ({"n": 17}, "at most 16", "n"), ({"top_logprobs": 1}, "needs logprobs", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "at most 20", "top_logprobs"), ({"max_tokens": 5, "max_completion_tokens": 6}, "mean the same", "max_tokens"),
    ({"max_tokens": 512}, "room for 512", "max_tokens"), ({"min_tokens": 9, "max_tokens": 8}, "min_tokens=9", "min_tokens"),
    ({"stream_options": {"include_usage": True}}, "needs stream", "stream_options"), ({"stop": [""]}, "1 to 256", "stop"),
    ({"stop": ["a"] * 17}, "at most 16", "stop"), ({"logit_bias": {"x": 1}}, "token ids", "logit_bias"), ({"logit_bias": {"9999": 1}}, "0 to 756", "logit_bias"),
    ({"logit_bias": {"5": 101}}, "-100 to 100", "logit_bias"), ({"stop_token_ids": [-1]}, "0 to 756", "stop_token_ids"),
    ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "up to 64 letters", "tools"), ({"tool_choice": "required"}, "needs tools", "tool_choice"),
    ({"tools": [{"name": "f"}]}, "with type function", "tools"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "f twice", "tools"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "some"}, "none, auto, required", "tool_choice"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tools has f", "tool_choice"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "what"}}}], "tool_choice": "required"}, "cannot be used", "tools"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required", "response_format": {"type": "json_object"}}, "cannot be combined with a tool_choice", "response_format"),
    ({"chat_template_kwargs": {"enable_thinking": True}}, "does not read 'enable_thinking'", "chat_template_kwargs"),
    ({"chat_template_kwargs": {"messages": []}}, "set by the server", "chat_template_kwargs"),
    ({"messages": []}, "1 to 4096", "messages"), ({"messages": [{"role": "bot", "content": "x"}]}, "allowed are system", "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text only", "messages"), ({"messages": [{"role": "user"}]}, "content is missing", "messages"),
])  # fmt: skip
def test_what_cannot_be_answered_is_refused_with_the_reason(client, more, part, param):
    body = {"messages": [{"role": "user", "content": QUESTION}], **more}
    refused(client.post("/v1/chat/completions", json=body), 400, part, param)


@pytest.mark.parametrize("more, part, param", [
    ({}, "prompt is missing", "prompt"), ({"prompt": []}, "1 to 64", "prompt"), ({"prompt": [9999]}, "0 to 756", "prompt"), ({"prompt": [1.0, 2.0]}, "expected text", "prompt"),
    ({"prompt": "a", "max_tokens": 0}, "needs echo", "max_tokens"), ({"prompt": "a", "suffix": "b"}, "fill gaps", "suffix"), ({"prompt": "a", "best_of": 2}, "not compared", "best_of"),
    ({"prompt": "kite " * 600}, "model has room for 512", None),
])  # fmt: skip
def test_completions_that_cannot_be_answered_are_refused(client, more, part, param):
    refused(client.post("/v1/completions", json=more), 400, part, param)


def test_messages_may_be_parts_and_of_a_developer(client):
    parts = [{"type": "text", "text": QUESTION[:9]}, {"type": "text", "text": QUESTION[9:]}]
    made = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}], **GREEDY}).json()
    assert made["choices"] == chat(client, **GREEDY).json()["choices"]
    talks = [
        [{"role": role, "content": "Be brief."}, {"role": "user", "content": "Hi"}] for role in ("developer", "system")
    ]
    assert len({str(client.post("/tokenize", json={"messages": talk}).json()) for talk in talks}) == 1


def test_bodies_that_are_not_json(client):
    post = client.post
    refused(post("/tokenize", content=b"{", headers={"content-type": "application/json"}), 400, "not valid JSON")
    refused(
        post("/tokenize", content=b"[" * 50_000, headers={"content-type": "application/json"}), 400, "nested too deeply"
    )
    refused(post("/tokenize", content=b"\xff", headers={"content-type": "application/json"}), 400, "not valid JSON")
    refused(post("/tokenize", content=b"{}", headers={"content-type": "text/plain"}), 415, "application/json")
    refused(
        post("/tokenize", content=b" " * (2 << 20), headers={"content-type": "application/json"}), 413, "1048576 bytes"
    )
    parts = (b" " * 100_000 for _ in range(20))
    refused(post("/tokenize", content=parts, headers={"content-type": "application/json"}), 413, "1048576 bytes")


def test_other_hosts_and_pages_of_other_sites_are_refused(client):
    refused(client.get("/v1/models", headers={"host": "evil.example"}), 403, "evil.example")
    refused(client.get("/v1/models", headers={"origin": "http://evil.example"}), 403, "other sites")
    for host in ("localhost:8000", "127.0.0.1:1", "[::1]:8000", "10.0.0.7"):
        assert client.get("/v1/models", headers={"host": host, "origin": f"http://{host}"}).status_code == 200
    assert not [name for name in client.get("/v1/models").headers if name.startswith("access-control")]


def test_metrics_and_health(client):
    assert client.get("/healthz").json() == {"status": "ok"} and client.get("/readyz").json() == {"status": "ready"}
    chat(client, **GREEDY)
    text = client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["llmctl_generated_tokens_total"]) >= 24 and values["llmctl_answers_held"] == "0"
    assert values["llmctl_engine_up"] == "1" and values["llmctl_waiting_prompt_tokens"] == "0"
    assert (
        values['llmctl_time_to_first_token_seconds_bucket{le="+Inf"}']
        == values["llmctl_time_to_first_token_seconds_count"]
    )


def lines(response):
    return [json.loads(line) for line in response.text.splitlines()]


def test_paddlenlp_asks_with_context_and_history(client):
    body = {
        "context": QUESTION,
        "top_k": 1,
        "top_p": 1.0,
        "temperature": 1.0,
        "repetition_penalty": 1.0,
        "max_length": 24,
    }
    made = lines(client.post("/api/chat", json=body))
    assert {(one["error_code"], one["error_msg"], one["result"]["response"]["role"]) for one in made} == {
        (0, "Success", "bot")
    }
    text = "".join(one["result"]["response"]["utterance"] for one in made)
    assert text == chat(client, **GREEDY).json()["choices"][0]["message"]["content"]
    turns = ["Ask about this: Mia likes tea.", "Does Mia like tea?"]
    forms = [
        turns,
        [{"role": "user", "utterance": turns[0]}, {"role": "bot", "utterance": turns[1]}],
        json.dumps(turns),
    ]
    texts = {"".join(one["result"]["response"]["utterance"] for one in lines(client.post("/api/chat", json={**body, "history": form})))
             for form in forms}  # fmt: skip
    assert len(texts) == 1 and client.post("/api/chat", json={"context": QUESTION, "history": ""}).status_code == 200


@pytest.mark.parametrize("body, part", [
    ({"context": QUESTION, "history": ["a"]}, "even number"), ({"context": QUESTION, "src_length": 3}, "it is not cut"), ({}, "context is missing"),
    ({"context": QUESTION, "max_length": 511}, "room for 512"), ({"messages": [{"role": "user", "content": "a"}], "model": "x"}, "/v1/chat/completions"),
    ({"context": QUESTION, "history": "["}, "not valid JSON"), ({"context": QUESTION, "history": [1, 2]}, "expected texts"),
])  # fmt: skip
def test_errors_of_paddlenlp_have_error_code_1(client, body, part):
    response = client.post("/api/chat", json=body)
    assert response.status_code == 400 and response.json()["error_code"] == 1 and part in response.json()["error_msg"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
PATHS = {path: rows for path, (_, rows, _) in BODIES.items()}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
PARTS = [
    {"type": "text", "text": "Hi"}, {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
    {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "x"}]}, {"type": "input_text", "text": "Hi"},
]  # fmt: skip
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}, "required": ["a"]}
GOOD = {
    "messages": [[{"role": "user", "content": "Hi"}], [{"role": "user", "content": PARTS}, {"role": "assistant", "content": PARTS}],
                 [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                  {"role": "tool", "tool_call_id": "1", "content": "x"}]],
    "input": ["Hi", [{"role": "user", "content": PARTS}, {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                     {"type": "function_call_output", "call_id": "1", "output": "x"}, {"type": "reasoning"}]],
    "prompt": ["Hi"], "context": ["Hi"], "max_tokens": [2], "max_length": [2], "max_output_tokens": [2], "system": ["x", PARTS[:1]],
    "tools": [[], [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}], [{"name": "f", "input_schema": SCHEMA}],
              [{"type": "function", "name": "f", "parameters": SCHEMA}]],
    "tool_choice": ["auto", "required", {"type": "function", "function": {"name": "f"}}, {"type": "tool", "name": "f"}, {"type": "any"}],
    "response_format": [{"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, {"type": "regex", "pattern": "a+b"},
                        {"type": "grammar", "grammar": 'start: "a"', "syntax": "lark"}],
    "structured_outputs": [{"choice": ["a", "b"]}, {"json": SCHEMA}], "text": [{"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}],
}  # fmt: skip
NEEDED = ("messages", "input", "prompt", "context", "max_tokens", "max_length", "max_output_tokens")


@st.composite
def spoiled(draw, value):
    """A value in which maybe one part is another one."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 3)):
        place = draw(st.sampled_from([*value] if isinstance(value, dict) else range(len(value))))
        copy = value.copy()
        copy[place] = draw(spoiled(copy[place]))
        return copy
    return draw(VALUES) if draw(st.integers(0, 2)) else value


@st.composite
def bodies(draw):
    path = draw(st.sampled_from([*PATHS]))
    names = [row.name for row in PATHS[path]]
    chosen = [name for name in GOOD if name in names and (name in NEEDED or draw(st.integers(0, 3)) == 0)]
    body = {name: draw(st.sampled_from(GOOD[name])) for name in chosen}
    if chosen and draw(st.booleans()):
        name = draw(st.sampled_from(chosen))
        body[name] = draw(spoiled(body[name]))
    wild = draw(st.dictionaries(st.sampled_from(names) | st.text(max_size=5), VALUES, max_size=2))
    near = draw(
        st.dictionaries(st.sampled_from(names), st.integers(-3, 30) | st.floats(-3, 3) | st.booleans(), max_size=2)
    )
    return path, {**body, **near, **wild, **({"max_tokens": 2} if "max_tokens" in body else {})}


@settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(bodies())
def test_no_body_causes_a_server_error(client, asked):
    path, body = asked
    response = client.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"})
    assert response.status_code < 500, (body, response.text)
    assert client.service.bridge.alive and client.service.admission.admitted == 0


def test_keys_are_compared_by_hash():
    hashed = "sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
    with served(keys=("right", hashed)) as client:
        refused(client.get("/v1/models"), 401, "Authorization: Bearer KEY")
        refused(chat(client), 401, "API key")
        for key, status in (("right", 200), ("secret", 200), ("wrong", 401), (hashed, 401)):
            assert client.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == status
        assert client.get("/healthz").status_code == 200 and client.get("/metrics").status_code == 401


def test_a_full_server_says_when_to_come_back():
    with served(requests=2) as client:
        refused(chat(client, n=3, **GREEDY), 400, "answers 2 at a time")
        client.service.admission.admitted = 1
        busy = chat(client, n=2, **GREEDY)
        refused(busy, 429, "the server is busy: 1 of at most 2 answers run or wait; try again later")
        assert int(busy.headers["retry-after"]) >= 1
        assert chat(client, **GREEDY, stream=True).status_code == 200 and client.service.admission.admitted == 1


def test_a_request_that_takes_too_long_is_ended():
    with served(seconds=0.02) as client:
        refused(chat(client, ignore_eos=True, max_tokens=480, n=16), 408, "longer than 0.02 seconds")
        assert client.service.admission.admitted == 0


def test_a_stopping_server_refuses(client):
    with served() as other:
        other.service.stopping = True
        refused(chat(other), 503, "stopping")
        assert other.get("/readyz").status_code == 503 and other.get("/healthz").status_code == 200


@pytest.mark.parametrize("engine", ["dynamic"])
def test_a_layer_is_served_one_request_at_a_time(engine):
    with served(engine=engine) as client, served() as fused:
        assert chat(client, **GREEDY).json()["choices"] == chat(fused, **GREEDY).json()["choices"]
        streamed = chunks(chat(client, **GREEDY, stream=True, n=2, seed=3))
        assert {one["choices"][0]["index"] for one in streamed} == {0, 1}
        refused(chat(client, logit_bias={"5": 1}, **GREEDY), 400, "logit_bias needs the fused engine")
        refused(
            client.post("/v1/completions", json={"prompt": "a", "echo": True, "logprobs": 1}),
            400,
            "need the fused engine",
            "echo",
        )


def test_cached_tokens_are_told_however_an_answer_ends(client):
    text = "Deny this: " + "Tom has a red kite. " * 12
    first = chat(client, text, **GREEDY).json()
    whole = first["choices"][0]["message"]["content"]
    for more in ({}, {"stop": whole[4:9]}):
        usage = chat(client, text, **GREEDY, **more).json()["usage"]
        assert 16 <= usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]


def test_an_engine_that_fails_answers_503(monkeypatch):
    with served() as client:
        engine = client.service.bridge._backend.engine
        step, faults = engine._run, iter([True, False])
        monkeypatch.setattr(engine, "_run", lambda chunks: 1 / 0 if next(faults, False) else step(chunks))
        refused(chat(client), 500, "a step of the engine failed")
        assert chat(client, **GREEDY).status_code == 200 and client.get("/healthz").status_code == 200
        assert "llmctl_engine_restarts_total 1\n" in client.get("/metrics").text
        monkeypatch.setattr(engine, "_run", lambda chunks: 1 / 0)
        assert [chat(client).status_code for _ in range(2)] == [500, 500]
        refused(chat(client), 503, "started again")
        refused(chat(client, stream=True), 503, "started again")
        assert client.get("/healthz").status_code == 503 and client.service.bridge.dead
        assert client.service.admission.admitted == 0


@pytest.mark.parametrize("fault", [ZeroDivisionError, SystemExit])
def test_an_engine_that_dies_under_many_streams_leaves_nobody_waiting(monkeypatch, fault):
    def die(chunks):
        raise fault

    with served() as client:
        engine = client.service.bridge._backend.engine
        with ThreadPoolExecutor(32) as pool:
            asked = {"temperature": 0, "ignore_eos": True, "max_tokens": 400, "stream": True}
            streams = [pool.submit(chat, client, f"Deny this: Tom has {n} kites.", **asked) for n in range(32)]
            while not engine.statistics().running:
                pass
            monkeypatch.setattr(engine, "_run", die)
            responses = [stream.result(60) for stream in streams]
        for response in responses:
            assert response.status_code in (500, 503) or '"error"' in response.text.split("\n\n")[-3]
        assert client.service.admission.admitted == 0 and client.get("/healthz").status_code == 503


def test_a_fault_of_the_server_is_told_in_the_same_form(monkeypatch):
    with served() as client:
        monkeypatch.setattr(type(client.service), "pieces", None)
        refused(chat(client), 500, "see its log")
        assert client.get("/readyz").status_code == 200


def test_the_page_is_small_and_loads_nothing_else(client):
    response = client.get("/")
    assert response.headers["content-type"].startswith("text/html") and len(response.content) <= 20_000
    assert not re.search(r"https?:|src=|href=|@import|url\(|innerHTML", response.text)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
    script = re.search(r"<script>(.*?)</script>", response.text, re.DOTALL)[1]
    assert base64.b64encode(sha256(script.encode()).digest()).decode() in policy
    assert not re.search(r" on[a-z]+=| style=", response.text), "the policy forbids them"
    for path in re.findall(r'fetch\("([^"]+)"', script):
        assert f"/{path}" in client.get("/nothing").json()["error"]["message"]
