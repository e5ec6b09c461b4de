"""Rules of the architecture that a reader may rely on."""

import re
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parents[2] / "core"
FAMILIES = (
    "llama",
    "baichuan",
    "qwen",
    "mixtral",
    "mistral",
    "chatglm",
    "bloom",
    "gpt2",
    "gpt3",
    "gpt-2",
    "gpt-3",
    "opt",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_core_never_names_a_family(family):
    named = re.compile(rf"(?<![a-z0-9]){family}(?![a-z0-9])", re.IGNORECASE)
    hits = [
        f"{path.relative_to(CORE)}:{number}: {line.strip()}"
        for path in sorted(CORE.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if named.search(line)
    ]
    assert not hits, "\n".join(hits)
