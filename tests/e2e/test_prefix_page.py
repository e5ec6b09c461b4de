"""Every command that docs/prefix.md shows works as shown, in order; run in this process."""

from pathlib import Path

from kit.pages import SHORT, config_of, follow, lay_out, run

PAGE = "docs/prefix.md"


def test_the_commands_work_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_out(8)
    Path("prefix.yaml").write_text(config_of(PAGE), encoding="utf-8")
    follow(PAGE, "finetune", SHORT, 8)
    names = {path.name for path in Path("runs/prefix-paddlenlp").iterdir()}
    assert {"prefix_config.json", "prefix_model_state.pdparams", "pre_caches.npy"} <= names
    code, text = run(["merge", "runs/prefix/model", "--output", "runs/merged"])
    assert code == 2 and "a prefix, which cannot be merged" in text and not Path("runs/merged").exists()
