"""``llmctl generate``: mistakes are refused before paddle is imported; files and standard input are read as they are."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STARTER = Path(__file__).resolve().parents[2] / "plugins" / "llama" / "llmctl_llama" / "starter" / "model"
PROBE = "print('PADDLE', 'paddle' in sys.modules)"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "give one of --prompt, --input and --chat"),
        (["--prompt", "a", "--chat"], "give one of --prompt, --input and --chat"),
        (
            ["--prompt", "a", "--greedy", "--top-k", "3", "--top-p", "0.5"],
            "--top-k, --top-p has no effect with --greedy",
        ),
        (["--prompt", "a", "--sample", "--temperature", "0"], "temperature=0.0 must be above 0"),
        (["--prompt", "a", "--max-new-tokens", "0"], "max_new_tokens=0 must be at least 1"),
        (["--prompt", "a", "--output", "x"], "--output needs --input"),
        (["--input", "absent.jsonl"], "there is no such file"),
        (["--prompt", "a", "--raw", "--chat-template", "x.json"], "--raw excludes"),
        (["--prompt", "a", "--chat-template", "absent.json"], "there is no chat template absent.json"),
        (["--chat", "--batch-size", "2"], "--batch-size has no effect with --chat"),
        (["--prompt", "-", "--prompt", "-"], "give --prompt - once"),
        (["--raw", "--prompt", "a", "--system", "s"], "--system needs a chat template"),
    ],
)
def test_mistakes_are_refused_before_paddle(run_llmctl, tmp_path, arguments, part):
    done = run_llmctl("generate", str(STARTER), *arguments, cwd=tmp_path, probe=PROBE)
    assert done.returncode == 2 and part in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.stdout.strip().endswith("PADDLE False") and not list(tmp_path.iterdir())


def test_a_folder_that_is_no_model_is_refused(run_llmctl, tmp_path):
    done = run_llmctl("generate", str(tmp_path), "--prompt", "a")
    assert done.returncode == 2 and "has no config.json" in done.stderr


def test_a_tokenizer_that_does_not_fit_is_refused(run_llmctl, tmp_path):
    shutil.copytree(STARTER, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "vocab_size": 16}))
    done = run_llmctl("generate", str(tmp_path / "model"), "--prompt", "a")
    assert done.returncode == 2 and "embedding has only 16 rows" in done.stderr


def test_standard_input_gives_what_the_argument_gives(run_llmctl):
    options = ["generate", str(STARTER), "--raw", "--max-new-tokens", "6"]
    by_argument = run_llmctl(*options, "--prompt", "Tom has a")
    by_pipe = run_llmctl(*options, "--prompt", "-", stdin="Tom has a\n")
    assert by_argument.returncode == by_pipe.returncode == 0, by_pipe.stderr
    assert by_argument.stdout == by_pipe.stdout != "\n"


def test_input_that_is_not_utf8_is_refused():
    command = [sys.executable, "-m", "llmctl", "generate", str(STARTER), "--prompt", "-"]
    done = subprocess.run(command, input=b"caf\xe9", capture_output=True)
    assert done.returncode == 2 and b"standard input is not valid UTF-8" in done.stderr


def test_a_file_is_answered_line_by_line(run_llmctl, tmp_path):
    (tmp_path / "in.jsonl").write_text(
        '{"src": "Deny this: Tom has a red kite."}\n{"src": "Ask about this: x", "tgt": "y"}\n'
    )
    done = run_llmctl("generate", str(STARTER), "--input", "in.jsonl", "--output", "out.jsonl", "--max-new-tokens", "4",
                      cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"src", "output"}, {"src", "tgt", "output"}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_several_turns_without_a_template_name_the_line_and_the_option(run_llmctl, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"src": ["a", "b"], "tgt": ["c"]}\n')
    done = run_llmctl("generate", str(STARTER), "--raw", "--input", "in.jsonl", cwd=tmp_path)
    assert done.returncode == 2 and "in.jsonl:1 has 2 turns" in done.stderr and "--chat-template" in done.stderr


def test_standard_input_is_a_file_of_prompts_in_any_format(run_llmctl):
    rows = [
        {"instruction": "Deny this:", "input": "Tom has a red kite.", "mood": "glad"},
        {"prompt": "Ask about this: x"},
    ]
    command = ["generate", str(STARTER), "--input", "-", "--max-new-tokens", "4"]
    done = run_llmctl(*command, stdin=json.dumps(rows, indent=1))
    assert done.returncode == 0, done.stderr
    assert [set(json.loads(line)) for line in done.stdout.splitlines()] == [
        {"instruction", "input", "output"},
        {"prompt", "output"},
    ]
    assert "data format: Alpaca in 1 line and prompt-completion in 1 line (standard input)" in done.stderr
    assert "warning: the key 'mood' holds text that is not read, in 1 line (standard input:item 1)" in done.stderr
    done = run_llmctl(*command, "--format", "messages", stdin='{"src": "a"}\n' * 5)
    assert done.returncode == 2 and "5 lines (standard input:1, standard input:2, standard input:3 ...)" in done.stderr
    assert done.stderr.count("looks like messages") == 1 and "--column theirs=ours" in done.stderr
