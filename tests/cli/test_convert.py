"""``llmctl convert`` as a user runs it."""

import json
from pathlib import Path

STARTER = Path(__file__).resolve().parents[2] / "plugins" / "llama" / "llmctl_llama" / "starter" / "model"


def test_convert_and_check_need_neither_paddle_nor_torch(run_llmctl, tmp_path):
    probe = "print(sorted({'paddle', 'torch', 'rich'} & set(sys.modules)), file=sys.stderr)"
    done = run_llmctl("convert", str(STARTER), str(tmp_path / "own"), probe=probe)
    assert (done.returncode, done.stderr.strip()) == (0, "[]"), done.stderr
    assert "own written:" in done.stdout
    again = run_llmctl("convert", str(STARTER), str(tmp_path / "own"))
    assert "already converted" in again.stdout
    checked = run_llmctl("convert", "--check", str(tmp_path / "own"))
    assert "is a complete llama model" in checked.stdout and "layout native" in checked.stdout


def test_a_shard_that_is_absent_is_named(run_llmctl, tmp_path):
    done = run_llmctl("convert", str(STARTER), str(tmp_path / "own"), "--max-shard-size", "300KB")
    assert done.returncode == 0, done.stderr
    sorted((tmp_path / "own").glob("model-*"))[1].unlink()
    broken = run_llmctl("convert", "--check", str(tmp_path / "own"))
    assert broken.returncode == 2 and "names files that are missing, 1 in all: model-00002" in broken.stderr
    assert "Traceback" not in broken.stderr


def test_an_unknown_setting_of_the_config_is_an_error(run_llmctl, tmp_path):
    config = json.loads((STARTER / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "attn_logit_softcapping": 50.0}))
    done = run_llmctl("convert", "--check", str(tmp_path))
    assert done.returncode == 2 and "does not know attn_logit_softcapping=50.0" in done.stderr


def test_a_target_is_needed_unless_checking(run_llmctl):
    done = run_llmctl("convert", str(STARTER))
    assert done.returncode == 2 and "TARGET is missing" in done.stderr
