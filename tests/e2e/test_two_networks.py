"""Two machines that see each other over a network only: a launcher in each of two network namespaces."""

import os
import shutil
import subprocess

import pytest
from kit.pages import lay_out, quick
from kit.started import LLMCTL, ended, losses, start

pytestmark = [
    pytest.mark.parallel,
    pytest.mark.netns,
    pytest.mark.skipif(
        not shutil.which("ip") or os.geteuid() != 0, reason="only root makes network namespaces, with ip of iproute2"
    ),
]

SETTINGS = {
    "model.path": "path/to/model",
    "data.train": "my-data/train.jsonl",
    "data.dev": "my-data/dev.jsonl",
    "data.max_length": 64,
    "train.max_steps": 3,
    "train.grad_accumulation": 2,
    "train.batch_size": 2,
    "train.eval_before": "false",
    "train.log_every": 1,
    "output.samples": 0,
}


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def networks():
    """Name, interface and address of two namespaces with a cable between them."""
    tag = f"{os.getpid() % 100000}"
    found = [(f"llmctl-{tag}-{n}", f"ll{tag}{n}", f"10.99.0.{n + 1}") for n in range(2)]
    try:
        for name, _, _ in found:
            ip("netns", "add", name)
        ip("link", "add", found[0][1], "type", "veth", "peer", "name", found[1][1])
        for name, interface, address in found:
            ip("link", "set", interface, "netns", name)
            ip("netns", "exec", name, "ip", "addr", "add", f"{address}/24", "dev", interface)
            for device in (interface, "lo"):
                ip("netns", "exec", name, "ip", "link", "set", device, "up")
        yield found
    finally:
        for name, _, _ in found:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_two_machines_train_as_one_process(networks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_out(16)
    (code,), said = ended(start([*LLMCTL, "finetune", "--output", "one", *quick(SETTINGS)]))
    assert code == 0, said
    words = ["--output", "two", "--nnodes", "2", "--master", f"{networks[0][2]}:6170"]
    codes, outputs = ended(
        *(
            start(
                ["ip", "netns", "exec", name, *LLMCTL, "finetune", *words, "--node-rank", number, "--interface", interface, *quick(SETTINGS)]
            )
            for number, (name, interface, _) in enumerate(networks)
        )
    )  # fmt: skip
    assert codes == [0, 0], outputs
    assert losses("two") == pytest.approx(losses("one"), rel=1e-4)
