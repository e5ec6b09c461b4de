"""Keys with classes and limits, the log, and names of metrics."""

import json
import logging
import re
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.served import QUESTION, chat, refused, served

from llmctl.config.serve import ServerConfig
from llmctl.errors import ConfigError, FileError
from llmctl.serve import server
from llmctl.serve.access.allowance import Allowance, Limits
from llmctl.serve.access.keys import ANYONE, Keys
from llmctl.serve.log import JsonFormatter
from llmctl.serve.metrics import HELP, VLLM, Metrics
from llmctl.serve.problems import Problem

HASHED = "sha256:" + sha256(b"hidden").hexdigest()


def test_a_line_has_a_key_its_class_name_and_limits():
    keys = Keys(["plain", f"{HASHED} admin name=ops@home requests=5 tokens=70"], limits=Limits(parallel=3, tokens=9))
    plain, hidden = keys.check("Bearer plain"), keys.check("bearer hidden")
    assert (plain.kind, plain.name, plain.limits) == ("user", "", Limits(0, 9, 3))
    assert (hidden.kind, hidden.name, hidden.limits) == ("admin", "ops@home", Limits(5, 70, 3))
    hidden.check_admin()
    with pytest.raises(Problem, match="class admin") as error:
        plain.check_admin()
    assert error.value.status == 403
    for wrong in ("", "Bearer ", "Basic plain", f"Bearer {HASHED}", "Bearer plai"):
        with pytest.raises(Problem, match="missing or wrong"):
            keys.check(wrong)
    assert Keys().check("") is ANYONE and not Keys() and keys


@pytest.mark.parametrize(
    "line", ["key root", "key name=", "key requests=-1", "key requests=x", "sha256:12", "key tokens"]
)
def test_a_wrong_line_is_an_error(line):
    with pytest.raises(FileError):
        Keys([line])


def test_a_file_is_read_again_and_after_an_error_the_keys_stay(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# ours\none requests=1\n\ntwo\n")
    keys = Keys(["always"], path)
    keys.check("Bearer one").allowance.enter(1)
    path.write_text("one requests=1\nthree\n")
    keys.reload()
    assert keys.check("Bearer three") and keys.check("Bearer always")
    with pytest.raises(Problem):
        keys.check("Bearer two")
    with pytest.raises(Problem, match="has used them"):
        keys.check("Bearer one").allowance.enter(1)
    path.write_text("# none\n")
    with pytest.raises(FileError):
        keys.reload()
    assert keys.check("Bearer three")


@given(st.lists(st.tuples(st.floats(0, 90), st.integers(1, 3), st.integers(0, 80)), max_size=40))
def test_no_more_is_used_than_the_limits_allow(steps):
    now, limits, used = 0.0, Limits(requests=6, tokens=100, parallel=4), []
    allowance = Allowance(limits, lambda: now)
    for wait, answers, tokens in steps:
        now += wait
        try:
            allowance.enter(answers)
        except Problem as problem:
            assert problem.status == 429 and int(problem.headers["retry-after"]) >= 1
            continue
        allowance.leave(answers, tokens)
        used.append((now, tokens))
    for start, _ in used:
        within = [tokens for at, tokens in used if start <= at < start + 60]
        assert len(within) <= 2 * limits.requests and sum(within[:-1]) <= 2 * limits.tokens + 80


def test_limits_of_a_key_are_kept_by_the_server():
    keys = ["few requests=2", "small tokens=30", "narrow parallel=2", "free"]
    with served(keys=keys) as client:

        def ask(key, **more):
            client.headers["authorization"] = f"Bearer {key}"
            return chat(client, **{"temperature": 0, "max_tokens": 20, **more})

        assert [ask("few").status_code for _ in range(2)] == [200, 200]
        refused(ask("few"), 429, "2 requests a minute")
        assert 1 <= int(ask("few").headers["retry-after"]) <= 60
        assert ask("small").status_code == 200
        refused(ask("small"), 429, "30 tokens a minute")
        refused(ask("narrow", n=3), 429, "2 answers at a time")
        assert ask("narrow", n=2).status_code == 200 and ask("free", n=5).status_code == 200
        body = {"prompt": "Tom has", "echo": True, "logprobs": 1, "max_tokens": 1}
        client.headers["authorization"] = "Bearer narrow"
        assert [client.post("/v1/completions", json=body).status_code for _ in range(2)] == [200, 200]


def test_the_log_in_json_has_the_request_and_nothing_that_was_said(caplog):
    caplog.set_level(logging.INFO, "llmctl.serve")
    with served(keys=["secret name=alice"]) as client:
        chat(client, "Xaverl", max_tokens=2)
        client.headers["authorization"] = "Bearer secret"
        assert chat(client, "Xaverl", max_tokens=2).status_code == 200
    rows = [json.loads(JsonFormatter().format(record)) for record in caplog.records if record.name == "llmctl.serve"]
    assert [(row["status"], row["key"]) for row in rows] == [(401, ""), (200, "alice")]
    assert set(rows[0]) == {"time", "level", "method", "path", "status", "ms", "id", "key"}
    assert not re.search("Xaverl|secret", str(rows))
    plain = logging.LogRecord("llmctl.serve", logging.ERROR, "", 0, "a %s", ("fault",), None)
    assert json.loads(JsonFormatter().format(plain))["message"] == "a fault"


def test_vllm_s_names_of_metrics_are_added():
    metrics = Metrics("vllm", "starter")
    metrics.count("answers_total", 'reason="stop"')
    metrics.time("time_to_first_token_seconds", 0.02)
    text = metrics.text({"engine_running": 3})
    for line in ('vllm:request_success_total{model_name="starter",reason="stop"} 1', "llmctl_engine_running 3",
                 'vllm:num_requests_running{model_name="starter"} 3', 'llmctl_answers_total{reason="stop"} 1',
                 'vllm:time_to_first_token_seconds_bucket{model_name="starter",le="0.03"} 1',
                 "llmctl_time_to_first_token_seconds_count 1"):  # fmt: skip
        assert line in text.splitlines()
    assert "vllm" not in Metrics().text({"engine_running": 3}) and set(VLLM) <= set(HELP)


def test_every_gauge_of_the_server_is_explained():
    with served() as client:
        chat(client, QUESTION, max_tokens=300, ignore_eos=True)
        text = client.get("/metrics").text
    names = set(re.findall(r"^llmctl_(\w+?)(?:_bucket|_sum|_count)?[ {]", text, re.MULTILINE))
    assert {name for name in names if name not in HELP} == set()
    assert {"inter_token_seconds", "time_to_first_token_seconds"} <= names


def test_https_needs_a_certificate_that_fits_its_key(tmp_path):
    (tmp_path / "a.pem").write_text("nothing")
    for certificate, key, part in (
        ("a", "", "both"),
        (tmp_path / "a.pem", tmp_path / "a.pem", "cannot be used"),
        ("no", "no", "cannot be used"),
    ):
        with pytest.raises(ConfigError, match=part):
            server.check_tls(ServerConfig(tls_certificate=str(certificate), tls_key=str(key)))
    server.check_tls(ServerConfig())


def test_a_socket_that_a_killed_server_left_is_replaced_and_a_live_one_is_not(tmp_path):
    path = str(tmp_path / "s")
    server.listen_unix(path).close()
    with server.listen_unix(path):
        with pytest.raises(ConfigError, match="in use"):
            server.listen_unix(path)
    with pytest.raises(ConfigError, match="No such file"):
        server.listen_unix(str(tmp_path / "no" / "s"))
