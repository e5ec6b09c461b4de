"""``llmctl new-plugin`` makes a family that is listed, passes the conformance suite and proves it in the matrix."""

import json
import os
import re
import subprocess
import sys


def test_the_skeleton_passes_the_conformance_suite_and_has_evidence(run_llmctl, tmp_path):
    made = run_llmctl("new-plugin", "red_lorikeet", "--into", str(tmp_path))
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "llmctl-red-lorikeet"
    install(folder)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "llmctl.testing.plugin", "--llmctl-evidence", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout + done.stderr
    evidence = json.loads((folder / "llmctl_red_lorikeet" / "evidence.json").read_text())["red_lorikeet"]["outcomes"][
        "sft"
    ]
    assert evidence and not [test for test in evidence if "recordings" in test]
    table = json.loads(run_llmctl("models", "--matrix", "--json", env=environment).stdout)
    assert (table["red_lorikeet"]["sft"]["label"], table["red_lorikeet"]["convert"]["label"]) == ("yes", "yes")
    card = folder / "llmctl_red_lorikeet" / "__init__.py"
    card.write_text("import numpy\n" + card.read_text().replace("31_904", "31_905"))
    table = json.loads(run_llmctl("models", "--matrix", "--json", env=environment).stdout)
    assert table["red_lorikeet"]["sft"]["label"] == "unverified"
    done = subprocess.run(
        [*command, "-k", "count or heavy or merge_to"], capture_output=True, text=True, env=environment, cwd=folder
    )
    assert "tiny: the table has 31,904, published are 31,905" in done.stdout and "['numpy']" in done.stdout
    # A part of the tests is no evidence: what there was stays as it was.
    written = json.loads((folder / "llmctl_red_lorikeet" / "evidence.json").read_text())
    assert "evidence of red_lorikeet was not written" in done.stdout and done.returncode == 4
    assert written["red_lorikeet"]["outcomes"]["sft"] == evidence
    explained = run_llmctl("models", "red_lorikeet", "--explain", env=environment)
    assert "red_lorikeet.layers.{layer}.self_attn.q_proj.weight" in explained.stdout


def install(folder):
    """What pip would write for an editable installation, without pip."""
    text = (folder / "pyproject.toml").read_text()
    group = re.search(r'entry-points\."(.*?)"\]\n(.*?)\n', text)
    info = folder / "llmctl_red_lorikeet-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llmctl-red-lorikeet\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[{group[1]}]\n{group[2].replace(chr(34), '')}\n")


def test_a_name_that_is_taken_or_odd_is_refused(run_llmctl, tmp_path):
    for name, message in (
        ("llama", "is already installed"),
        ("My-Model", "consist of lower-case letters"),
        ("a__b", "consist of lower"),
    ):
        done = run_llmctl("new-plugin", name, "--into", str(tmp_path))
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
