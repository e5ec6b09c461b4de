"""tools/vllm_check.py tells how far another program's answers are from llmctl's; a stand-in is that program here."""

import importlib.util
import json

from kit.paths import ROOT, STARTER

spec = importlib.util.spec_from_file_location("vllm_check", ROOT / "tools" / "vllm_check.py")
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)


def test_a_row_has_the_largest_difference_or_the_cause(tmp_path, monkeypatch):
    prompts, scores, tokens = check.ask_llmctl(STARTER / "model")
    assert [len(row) for row in scores] == [len(ids) - 1 for ids in prompts]
    assert {len(row) for row in tokens} == {check.NEW_TOKENS}
    others = {"method": "gptq", "scores": [[*row] for row in scores], "tokens": [[*row] for row in tokens]}
    others["scores"][1][2] += 0.5
    others["tokens"][2][0] += 1
    found = json.dumps(others)
    monkeypatch.setattr(check, "ask_llmctl", lambda folder: (prompts, scores, tokens))
    program = tmp_path / "python"
    for said, parts in (
        (f"echo 'FOUND {found}'", ["gptq", "0.500000", "2 of 3"]),
        ("echo 'ValueError: no kernel' >&2", ["refused: ValueError: no kernel"]),
    ):
        program.write_text(f"#!/bin/sh\n{said}\n")
        program.chmod(0o755)
        row = check.compare(STARTER / "model", str(program), "float32")
        assert row.startswith("model ") and all(part in row for part in parts), row
