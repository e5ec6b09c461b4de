"""``llmctl new-plugin`` makes a family that is listed, passes the conformance suite and proves it in the matrix."""

import json
import os
import re
import subprocess
import sys


def test_the_skeleton_passes_the_conformance_suite_and_has_evidence(run_llmctl, tmp_path):
    made = run_llmctl("new-plugin", "lorikeet", "--into", str(tmp_path))
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "llmctl-lorikeet"
    install(folder)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "llmctl.testing.plugin", "--llmctl-evidence", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout + done.stderr
    evidence = json.loads((folder / "llmctl_lorikeet" / "evidence.json").read_text())["lorikeet"]["outcomes"]["sft"]
    assert evidence and not [test for test in evidence if "recordings" in test]
    table = json.loads(run_llmctl("models", "--matrix", "--json", env=environment).stdout)
    assert (table["lorikeet"]["sft"]["label"], table["lorikeet"]["convert"]["label"]) == ("yes", "yes")
    explained = run_llmctl("models", "lorikeet", "--explain", env=environment)
    assert "lorikeet.layers.{layer}.self_attn.q_proj.weight" in explained.stdout


def install(folder):
    """What pip would write for an editable installation, without pip."""
    text = (folder / "pyproject.toml").read_text()
    group = re.search(r'entry-points\."(.*?)"\]\n(.*?)\n', text)
    info = folder / "llmctl_lorikeet-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llmctl-lorikeet\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[{group[1]}]\n{group[2].replace(chr(34), '')}\n")


def test_a_name_that_is_taken_or_odd_is_refused(run_llmctl, tmp_path):
    for name, message in (("llama", "is installed already"), ("My-Model", "must be lower-case letters")):
        done = run_llmctl("new-plugin", name, "--into", str(tmp_path))
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
