"""What docs/deployment.md shows: the unit, the image, the deployment, the board and the blueprint fit the server."""

import configparser
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from kit.readme import ROOT, STARTER, shown

from llmctl.cli import COMMANDS
from llmctl.commands.request import command as request
from llmctl.commands.serve import command as serve
from llmctl.config import schema
from llmctl.config.serve import ServeConfig
from llmctl.serve.app import make_app
from llmctl.serve.metrics import HELP

PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")


def block(kind):
    (found,) = re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)
    return found


def parsed(words):
    """The options of a command of the server."""
    name = words.index("serve")
    return serve.make_context("serve", [*words[name + 1 :]], resilient_parsing=False).params


@pytest.fixture(scope="module")
def config():
    return schema.build(ServeConfig, yaml.safe_load(block("yaml")), "serve.yaml")


def test_the_configuration_is_valid_and_whatever_runs_the_server_waits_longer_than_its_grace(config):
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read_string(block("ini"))
    service = unit["Service"]
    assert service["Type"] == "notify" and "-HUP" in service["ExecReload"]
    assert str(parsed(shlex.split(service["ExecStart"]))["config_file"]) == "/etc/llmctl/serve.yaml"
    deployment = yaml.safe_load(block("yml"))["spec"]["template"]["spec"]
    for seconds in (int(service["TimeoutStopSec"]), deployment["terminationGracePeriodSeconds"]):
        assert seconds > config.server.grace_seconds
    assert unit["Unit"]["Description"] and unit["Install"]["WantedBy"]


def test_the_image_runs_the_server_as_a_user_without_rights(config):
    lines = block("dockerfile").replace("\\\n", "").splitlines()
    keywords = [line.split()[0] for line in lines if line]
    assert set(keywords) <= {"FROM", "RUN", "COPY", "USER", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT"}
    entry = json.loads(next(line for line in lines if line.startswith("ENTRYPOINT")).removeprefix("ENTRYPOINT "))
    assert str(parsed(entry)["config_file"]) == "/etc/llmctl/serve.yaml"
    assert f"EXPOSE {config.server.port}" in lines and "USER 10001" in lines
    extras = re.search(r"paddle-llmctl\[([\w,]+)\]", block("dockerfile"))[1].split(",")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{extra} = ", project, re.MULTILINE) for extra in extras)


def test_probes_and_mounts_of_the_deployment_are_those_of_the_server(config):
    deployment = yaml.safe_load(block("yml"))
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    service = type("Service", (), {"metrics": None, "model": None, "bridge": None})()
    paths = make_app(service, None)._paths
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert (
            container[probe]["httpGet"]["path"] in paths and container[probe]["httpGet"]["port"] == config.server.port
        )
    mounted = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
    for path in (config.model.path, config.server.api_key_file, "/etc/llmctl/serve.yaml"):
        assert any(mount in Path(path).parents for mount in mounted)
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    assert spec["securityContext"]["runAsUser"] == 10001
    assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]


def test_the_board_asks_for_metrics_that_there_are():
    board = json.loads((ROOT / "docs" / "dashboard.json").read_text(encoding="utf-8"))
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    names = {
        name for expression in found for name in re.findall(r"llmctl_(\w+?)(?:_bucket)?(?=[\[\s){]|$)", expression)
    }
    assert names <= set(HELP) and len(names) >= 15 and "dashboard.json" in PAGE
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_the_blueprint_and_the_command_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(STARTER / "model", Path("path") / "to" / "model")
    names = {"__name__": __name__}
    exec(block("python"), names)
    app = names["app"]
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    assert app.test_client().post("/v1/chat/completions", json=body).json["usage"]["completion_tokens"] <= 2
    app.blueprints["llmctl"].close()
    (line,) = shown("docs/deployment.md")
    name, *words = shlex.split(line)[1:]
    assert name in COMMANDS and request.make_context(name, words).params["temperature"] == 0
