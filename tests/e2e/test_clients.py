"""The clients that people use, each in an environment of its own, against a server that runs: the programs in tools/clients.

Their packages come from a registry. What cannot be installed is skipped, for that says nothing of the server.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import venv

import pytest
from kit.paths import ROOT, STARTER
from kit.running import running

PROGRAMS = ROOT / "tools" / "clients"
ENVIRONMENTS = ROOT / "build" / "clients"
INSTALLING, RUNNING = 200, 300
"""Seconds."""

OWN = "openai_python.py"
"""This client is installed beside llmctl too."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The starter model with room for functions in the prompt."""
    folder = tmp_path_factory.mktemp("clients") / "model"
    shutil.copytree(STARTER / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return folder


@pytest.fixture(scope="module")
def server(model):
    with running(folder=model) as found:
        yield found


def packages(program):
    """What a program says that it needs."""
    text = program.read_text()
    if program.suffix == ".mjs":
        return re.search(r"^// dependencies: (.*)$", text, re.MULTILINE)[1].split()
    return json.loads(re.search(r"^# dependencies = (.*)$", text, re.MULTILINE)[1])


def installed(program):
    """The command of a program, in an environment that has its packages; made once."""
    needed, node = packages(program), program.suffix == ".mjs"
    if node and not shutil.which("npm"):
        pytest.skip("there is no npm")
    key = hashlib.sha256(" ".join([sys.version, *needed]).encode()).hexdigest()[:12]
    folder = ENVIRONMENTS / f"{program.stem}-{key}"
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        if node:
            folder.mkdir(parents=True)
            words = ["npm", "install", "--silent", "--no-audit", "--no-fund", *needed]
        else:
            venv.create(folder, with_pip=False)
            words = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile", *needed]
        try:
            subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=INSTALLING, check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"{' '.join(needed)} cannot be installed: {(error.stderr or str(error))[-300:]}")
        done.touch()
    if node:  # it looks for packages beside the program
        shutil.copy(program, folder)
    return ["node", folder / program.name] if node else [python, program]


def run(command, server, model):
    """What a program prints."""
    words = [*map(str, command), server.url, "starter", str(model)]
    made = subprocess.run(words, cwd=model.parent, capture_output=True, text=True, timeout=RUNNING)
    assert made.returncode == 0, (made.stdout + made.stderr)[-5000:]
    return made.stdout


def test_openai_s_client_gets_what_it_expects(server, model):
    assert "ok" in run([sys.executable, PROGRAMS / OWN], server, model)


@pytest.mark.clients
@pytest.mark.parametrize("program", sorted(path.name for path in PROGRAMS.glob("*.*") if path.stem != "lm_eval_scores"))
def test_a_client_gets_what_it_expects(program, server, model):
    assert run(installed(PROGRAMS / program), server, model)


@pytest.mark.clients
def test_lm_eval_s_log_likelihoods_are_our_own(server, model):
    from llmctl import LLM

    made = json.loads(run(installed(PROGRAMS / "lm_eval_scores.py"), server, model).splitlines()[-1])
    # The fused engine keeps keys and values in half precision, which the layer does not.
    for engine, bounds in (("fused", {"abs": 1e-3}), ("dynamic", {"rel": 1e-3})):
        with LLM(model, engine=engine) as llm:
            for row in made["found"]:
                ids, before = (
                    llm.tokenizer.encode(text, add_special=False) for text in (row["text"] + row["choice"], row["text"])
                )
                worth = sum(llm.score([ids])[0].logprobs[len(before) :])
                assert row["worth"] == pytest.approx(worth, **bounds), engine
    worth = [row["worth"] for row in made["found"]]
    assert made["accuracy"] == sum(a > b for a, b in zip(worth[::2], worth[1::2], strict=True)) / (len(worth) / 2)
    assert len(set(worth)) == len(worth)
