"""Models by name, from a server on the loopback that speaks the hub's protocol; ``huggingface_hub`` is the real one."""

import json
import os
import shlex
import subprocess
import sys

import pytest
from kit.hub_server import COMMIT, serving
from kit.model_cli import STARTER
from kit.model_cli import llmctl as in_process
from kit.readme import shown

NAME = "Qwen/tiny"
JUNK = {"onnx/model.onnx": b"x", "model.gguf": b"x", "README.md": b"x", "pytorch_model.bin": b"x", "tf_model.h5": b"x"}
READ = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
CHUNK = 10 << 20
"""The library keeps what it got in pieces of this size."""


@pytest.fixture
def hub():
    with serving() as server:
        server.add(NAME, STARTER, **JUNK)
        yield server


@pytest.fixture
def llmctl(hub, run_llmctl, tmp_path):
    """Runs a command where no other hub is known."""

    def run(*words, **more):
        return run_llmctl(*words, cwd=tmp_path, env=hub.environment(tmp_path / "cache", **more))

    return run


def test_what_is_read_is_downloaded_once_and_used_offline(hub, llmctl):
    first = llmctl("convert", NAME, "--check")
    assert first.returncode == 0 and f"snapshots/{COMMIT} is a complete llama model" in first.stdout, first.stderr
    assert f"downloading {NAME} at {COMMIT[:12]} from the Hugging Face Hub: 5 files, 1.8 MB" in first.stderr
    assert hub.sent() == dict.fromkeys(READ, 1)
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        again = llmctl("convert", NAME, "--check", **more)
        assert (again.returncode, again.stderr, again.stdout) == (0, "", first.stdout)
    assert hub.sent() == dict.fromkeys(READ, 1)


@pytest.mark.parametrize(
    "name, more, message",
    [
        (
            "Qwen/none",
            {},
            "there is no folder Qwen/none, and the Hugging Face Hub has no model Qwen/none that you may read",
        ),
        (f"{NAME}@v9", {}, f"{NAME} has no revision v9; its branches, tags and commits: "),
        ("Qwen/gated", {}, "Qwen/gated is gated: accept its conditions at "),
        (
            NAME,
            {"HF_HUB_OFFLINE": "1"},
            f"HF_HUB_OFFLINE is set. On a machine with a connection run: hf download {NAME} ",
        ),
        (NAME, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached"),
    ],
)
def test_what_cannot_be_downloaded_is_an_error_that_says_what_to_do(hub, llmctl, name, more, message):
    hub.models["Qwen/gated"] = hub.models[NAME]
    hub.gated.add("Qwen/gated")
    hub.token = "secret"
    refused = llmctl("convert", name, "--check", **more)
    assert refused.returncode == 2 and refused.stderr.startswith("error: ") and message in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_library_sends_the_token(hub, llmctl):
    hub.gated.add(NAME)
    hub.token = "secret"
    assert llmctl("convert", f"hf:{NAME}@{COMMIT}", "--check", HF_TOKEN="secret").returncode == 0


def test_a_broken_connection_is_resumed_where_it_broke_off(hub, run_llmctl, tmp_path):
    large = os.urandom(CHUNK + 5_000_000)
    hub.models[NAME] = {"config.json": b"{}", "model.safetensors": large}
    hub.cut["model.safetensors"] = CHUNK + 1_000_000
    code = f"from llmctl.hub.find import model_folder; print(model_folder({NAME!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, **hub.environment(tmp_path / "cache")},
    )  # fmt: skip
    folder = tmp_path / "cache" / "hub" / "models--Qwen--tiny" / "snapshots" / COMMIT
    assert done.stdout.strip() == str(folder) and (folder / "model.safetensors").read_bytes() == large
    ranges = [wanted for file, wanted in hub.got if file == "model.safetensors"]
    assert ranges == ["", f"bytes={CHUNK}-"]


def test_the_command_for_another_machine_makes_a_folder_that_is_read(hub, llmctl, tmp_path):
    message = llmctl("convert", NAME, "--check", HF_HUB_OFFLINE="1").stderr
    words = shlex.split(message.partition("run: ")[2].partition(";")[0])
    assert words[:2] == ["hf", "download"]
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", *words[1:]]
    environment = {**os.environ, **hub.environment(tmp_path / "other")}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert llmctl("convert", "tiny", "--check", HF_HUB_OFFLINE="1").returncode == 0


def test_a_run_records_the_commit_and_its_adapter_finds_the_base_again(hub, llmctl, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"src": "Tom has a red kite.", "tgt": "Tom has no kite."}\n' * 4)
    keys = {"model.path": NAME, "model.revision": "main", "data.train": "data.jsonl", "method.name": "lora",
            "train.max_steps": 1, "data.max_length": 64, "data.src_length": 32}  # fmt: skip
    (tmp_path / "run.yaml").write_text("{}")
    done = llmctl(
        "finetune", "run.yaml", "--output", "run", *(w for k, v in keys.items() for w in ("--set", f"{k}={v}"))
    )
    assert done.returncode == 0, done.stderr
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["base"]["path"] == f"{NAME}@{COMMIT}" and info["config"]["model"]["path"] == NAME
    peft = json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text())
    assert peft["base_model_name_or_path"] == NAME
    answer = llmctl("generate", "run/model", "--prompt", "Tom", "--max-new-tokens", "2", HF_HUB_OFFLINE="1")
    assert answer.returncode == 0, answer.stderr


def test_one_of_several_models_in_gguf_is_named_run_and_trained_over(hub, llmctl, tmp_path):
    for name, kind in (("m-Q8_0.gguf", "q8_0"), ("m-F16.gguf", "float16")):
        in_process("convert", STARTER, tmp_path / name, "--to", "gguf", "--dtype", kind)
        hub.models.setdefault("Qwen/gguf", {})[name] = (tmp_path / name).read_bytes()
    (tmp_path / "data.jsonl").write_text('{"src": "Tom has a red kite.", "tgt": "Tom has no kite."}\n' * 4)
    keys = {"model.path": "Qwen/gguf:Q8_0", "data.train": "data.jsonl", "method.name": "lora", "method.base": "int8",
            "train.max_steps": 1, "data.max_length": 64, "data.src_length": 32}  # fmt: skip
    (tmp_path / "run.yaml").write_text("{}")
    done = llmctl(
        "finetune", "run.yaml", "--output", "run", *(w for k, v in keys.items() for w in ("--set", f"{k}={v}"))
    )
    assert done.returncode == 0, done.stderr
    assert set(hub.sent()) == {"m-Q8_0.gguf"}
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["base"]["path"] == f"Qwen/gguf:m-Q8_0.gguf@{COMMIT}"
    answer = llmctl("generate", "run/model", "--prompt", "Tom", "--max-new-tokens", "2", HF_HUB_OFFLINE="1")
    assert answer.returncode == 0, answer.stderr


def test_options_for_a_tokenizer_leave_the_weights_out(hub, llmctl, tmp_path):
    (tmp_path / "text.txt").write_text("Tom has a red kite.\n")
    built = llmctl("data", "build", "text.txt", "--output", "corpus", "--tokenizer", NAME)
    assert built.returncode == 0, built.stderr
    assert hub.sent() == dict.fromkeys(READ - {"model.safetensors"}, 1)


def test_the_commands_of_the_page_work(hub, llmctl):
    hub.models["Qwen/Qwen2.5-0.5B"] = hub.models[NAME]
    for line in shown("docs/hub.md"):
        done = llmctl(*shlex.split(line)[1:])
        assert done.returncode == 0 and done.stdout, (line, done.stderr)
