"""Every command that docs/quantization.md shows works as shown, in order; its table of families is what the code does."""

import re
from pathlib import Path

import pytest
from kit.pages import ROOT, follow, lay_out

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.errors import UnsupportedError
from llmctl.infer.packed.folder import is_packed
from llmctl.infer.packed.pack import graph_of
from llmctl.infer.quantize import folds

PAGE = "docs/quantization.md"
NAMES = {"LLaMA": "llama", "GPT-3": "gpt3"}


def test_the_commands_work_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_out(120)
    said = follow(PAGE, "--calibration", {"calibration.tokens": 600, "calibration.window": 64, "check.max_kl": 100}, 11)
    for name in ("int4", "int8", "better", "rounded", "again"):
        folder = Path("path/to") / name
        assert is_packed(folder) and (folder / "quantization.html").is_file()
    assert "quantization_config" in Path("path/to/compressed/config.json").read_text()
    assert not Path("path/to/configured").exists()
    assert said["llmctl eval path/to/model path/to/int4 path/to/better --data my-data/dev.jsonl"].count("│") > 10


def families():
    """Family -> the four cells of its row."""
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| ([\w, -]+) \| (.*) \| (.*) \| (.*) \| (.*) \|$", text[text.index("## Families") :], re.MULTILINE
    )
    return {
        NAMES.get(name, name.lower()): cells
        for names, *cells in rows
        for name in names.split(", ")
        if names not in ("Family", "---")
    }


@pytest.mark.parametrize("family", plugins.Families().names)
def test_the_table_of_families_is_what_the_code_does(family):
    plugin = plugins.load(family)
    dims = tiny_dims(plugin.card, {})
    if family not in families():
        with pytest.raises(UnsupportedError, match="no shared expert"):
            graph_of(plugin, dims)
        return
    graph = graph_of(plugin, dims)
    for stage, cell in zip(folds.STAGES, families()[family], strict=True):
        reason = folds.no_scale(graph, stage)
        assert cell.startswith("no" if reason else "yes"), (family, stage, cell, reason)
        assert ("no offsets" in cell) == (not reason and stage == "up" and bool(folds.no_offset(graph, stage)))
