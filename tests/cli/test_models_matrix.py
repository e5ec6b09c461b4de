"""``llmctl models --matrix`` and its check."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_matrix_of_the_readme_is_up_to_date(run_llmctl):
    probe = "print(sorted({'paddle', 'numpy', 'rich'} & set(sys.modules)), file=sys.stderr)"
    done = run_llmctl("models", "--check-matrix", str(ROOT / "README.md"), probe=probe)
    assert (done.returncode, done.stderr.strip()) == (0, "[]"), done.stderr


def test_the_matrix_as_json_has_all_families(run_llmctl):
    table = json.loads(run_llmctl("models", "--matrix", "--json").stdout)
    families = {"llama", "baichuan", "qwen", "qwen2", "mixtral", "chatglm", "chatglm2", "bloom", "gpt3", "opt"}
    assert families <= set(table)
    assert all(row["convert"]["label"] == "yes" for name, row in table.items() if name in families)


def test_a_stale_file_fails_with_the_remedy(run_llmctl, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- matrix:begin -->\n<!-- matrix:end -->\n")
    done = run_llmctl("models", "--check-matrix", str(page))
    assert done.returncode == 2 and "llmctl models --update" in done.stderr and "Traceback" not in done.stderr
    assert run_llmctl("models", "--matrix", "llama").returncode == 2
