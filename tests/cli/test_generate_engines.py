"""``llmctl generate`` by every engine: which one is taken, the same answers, options, batch files that go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from kit.model_cli import NAMES, STARTER, llmctl, rows_of, write_questions
from kit.stories import story_model

from llmctl.infer.executors import native
from llmctl.testing.tiny import write_adapter

ASK = ["--prompt", "Deny this: Tom has a red kite.", "--max-new-tokens", "10", "--no-stream"]


def test_the_fused_engine_is_taken_where_it_can_and_paddle_is_not_imported(run_llmctl, tmp_path):
    write_questions(tmp_path / "in.jsonl")
    probe = "print('PADDLE', 'paddle' in sys.modules)"
    for words in (ASK, ["--input", "in.jsonl", "--max-new-tokens", "4", "--sample"]):
        done = run_llmctl("generate", str(STARTER), *words, cwd=tmp_path, probe=probe)
        assert done.returncode == 0 and done.stdout.strip().endswith("PADDLE False"), done.stderr
        assert "engine:" not in done.stderr


def test_engines_and_ways_of_computing_give_the_same_answers(tmp_path):
    file = ["--input", write_questions(tmp_path / "in.jsonl"), "--max-new-tokens", "12"]
    for options in (file, [*file, "--sample", "--min-p", "0.05", "--presence-penalty", "0.5", "--seed", "3"]):
        expected = llmctl("generate", STARTER, "--engine", "dynamic", *options)[0]
        assert expected.count('"output"') == len(NAMES)
        for more in ([], ["--engine", "fused", "--speculate", "3"], ["--batch-size", "2", "--cache-memory", "200KB"]):
            assert llmctl("generate", STARTER, *more, *options)[0] == expected, more


def test_a_conversation_is_the_same_by_every_engine():
    def talk(*words):
        lines = "Deny this: Tom lives in Rome.\nAsk about this: Mia has a red kite.\n/quit\n"
        return llmctl("chat", STARTER, "--max-new-tokens", "8", *words, stdin=lines)[0]

    assert len(talk()) > 20 and talk() == talk("--engine", "dynamic")
    # A cache without room for both turns forgets the first, and the second is answered all the same.
    assert talk("--cache-memory", "200KB").split("\n")[0] == talk().split("\n")[0] != ""
    assert talk("--cache-memory", "200KB").split("\n")[1] not in ("", talk().split("\n")[1])


def test_without_kernels_the_layer_computes_and_the_reason_is_told(monkeypatch):
    expected = llmctl("generate", STARTER, *ASK)[0]
    monkeypatch.setattr(native, "available", lambda: False)
    out, err = llmctl("generate", STARTER, *ASK)
    assert out == expected and err.startswith("engine: dynamic (there are no compiled kernels: ")
    assert (
        "--weights needs the fused engine: there are no"
        in llmctl("generate", STARTER, *ASK, "--weights", "int8", code=2)[1]
    )
    out, err = llmctl("generate", STARTER, "--engine", "fused", *ASK)
    assert out == expected and err.startswith("engine: fused, by paddle's operations (there are no compiled kernels: ")


def test_rows_that_outgrow_a_fixed_rotation_go_to_the_layer(tmp_path):
    shutil.copytree(STARTER, tmp_path / "model")
    config = json.loads((STARTER / "config.json").read_text())
    scaling = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 40}
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, **scaling}))
    out, err = llmctl("generate", tmp_path / "model", *ASK[:3], "60", "--no-stream")
    assert err.startswith("engine: dynamic (prompt and answer may pass 40 tokens") and out.strip()
    assert llmctl("generate", tmp_path / "model", *ASK)[1] == ""


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--engine", "dynamic", "--weights", "int8"], "--weights has no effect with --engine dynamic"),
        (["--engine", "dynamic", "--beams", "2"], "--beams has no effect with --engine dynamic"),
        (["--no-cache", "--kv", "int8"], "--kv needs the fused engine: --no-cache"),
        (["--engine", "fused", "--no-cache"], "--engine fused needs the fused engine: --no-cache"),
        (["--group", "64"], "group=64 is for weights of int8 and int4"),
        (["--weights", "int4", "--group", "33"], "--group 33 must be a multiple of 32, or 0"),
        (["--cache-memory", "lots"], "--cache-memory: 'lots' is not a size; write 2GB"),
        (["--cache-memory", "1B"], "has room for 0 tokens"),
        (["--cache-memory", "99999999999999GB"], "this machine has no room for a cache of"),
        (["--min-p", "0.1", "--beams", "2"], "--min-p has no effect with --beams"),
        (["--logprobs", "2"], "--logprobs needs --input"),
        (["--beams", "2", "--stop", "x"], "--beams cannot be combined with"),
        (["--beams", "4", "--batch-size", "3"], "--beams 4 is more than the 3 rows"),
        (["--length-penalty", "2"], "has no effect without --beams"),
        (["--adapter", "a=b", "--adapter", "c"], "several adapters need names"),
        (["--adapter", "a=b", "--adapter", "a=c"], "gives a name twice"),
        (["--adapter", "=b"], "the name is missing"),
        (["--adapter", "absent"], "absent does not exist; the folder of an adapter has one of"),
    ],
)
def test_options_without_effect_are_refused(words, part):
    out, err = llmctl("generate", STARTER, *ASK, *words, code=2)
    assert part in err and not out


def test_answers_take_the_place_of_no_other_thing(tmp_path):
    file = write_questions(tmp_path / "in.jsonl")
    (tmp_path / "link.jsonl").symlink_to(file)
    os.mkfifo(tmp_path / "pipe")
    content = file.read_bytes()
    for output, part in (
        ("in.jsonl", "is the file of --input, which would be lost"),
        ("link.jsonl", "is the file of --input, which would be lost"),
        ("pipe", "is a device or a pipe"),
        ("in.jsonl/below", "cannot be written: File exists; name another file"),
    ):
        assert part in llmctl("generate", STARTER, "--input", file, "--output", tmp_path / output, code=2)[1]
    assert file.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "link.jsonl", "pipe"]


def test_a_message_that_is_no_text_ends_no_conversation():
    done = subprocess.run([sys.executable, "-m", "llmctl", "generate", str(STARTER), "--chat", "--max-new-tokens", "4"],
                          input=b"caf\xe9\nDeny this: Tom sings.\n", capture_output=True)  # fmt: skip
    assert done.returncode == 0 and b"the message is not valid UTF-8" in done.stderr
    assert done.stdout.count(b"\n") == 1 and len(done.stdout) > 10


def test_a_prompt_without_room_for_one_token_is_to_be_shortened():
    for engine in ("fused", "dynamic"):
        words = ["--engine", engine, "--raw", "--prompt", "tea " * 900]
        assert "Shorten it to fewer than 512 tokens" in llmctl("generate", STARTER, *words, code=2)[1]


def test_an_unknown_choice_of_kernels_is_refused(monkeypatch):
    from llmctl_ops import library

    monkeypatch.setattr(library, "load", lambda: library.open_library(library.FILE, "bogus"))
    for words in ([], ["--engine", "fused"]):
        assert "LLMCTL_OPS='bogus' must be one of auto" in llmctl("generate", STARTER, *ASK, *words, code=2)[1]


def test_beams_and_log_probabilities_are_told(tmp_path):
    file = [
        "--input",
        write_questions(tmp_path / "in.jsonl"),
        "--output",
        tmp_path / "out.jsonl",
        "--max-new-tokens",
        "5",
    ]
    llmctl("generate", STARTER, *file, "--logprobs", "2")
    plain = rows_of(tmp_path / "out.jsonl")
    scores = plain[0]["logprobs"]
    assert len(scores) == 5 and all(len(row["top"]) == 2 and row["top"][0][1] == row["logprob"] for row in scores)
    llmctl("generate", STARTER, *file, "--beams", "3")
    assert [set(row) for row in rows_of(tmp_path / "out.jsonl")] == [{"src", "output"}] * len(NAMES)


def test_lines_choose_among_adapters(tmp_path):
    file = write_questions(tmp_path / "in.jsonl")
    words = ["--max-new-tokens", "8", "--input", file]
    first, second = (write_adapter(tmp_path / name, STARTER, seed) for seed, name in enumerate(("first", "second")))
    alone = [
        [json.loads(line)["output"] for line in llmctl("generate", STARTER, *put, *words)[0].splitlines()]
        for put in ([], ["--adapter", first], ["--adapter", second])
    ]
    assert alone[0] != alone[1] != alone[2]
    names = [None, "a", "b"]
    lines = [{**row, **({"adapter": names[i % 3]} if i % 3 else {})} for i, row in enumerate(rows_of(file))]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    named = ["--adapter", f"a={first}", "--adapter", f"b={second}"]
    rows = [json.loads(line) for line in llmctl("generate", STARTER, *named, *words)[0].splitlines()]
    assert [row["output"] for row in rows] == [alone[i % 3][i] for i in range(len(NAMES))]
    assert [row.get("adapter") for row in rows] == [names[i % 3] for i in range(len(NAMES))]
    assert (
        "in.jsonl:3 asks for the adapter 'b'; given are: a"
        in llmctl("generate", STARTER, *named[:2], *words, code=2)[1]
    )
    assert (
        "--adapter NAME=FOLDER has no effect with --engine dynamic"
        in llmctl("generate", STARTER, "--engine", "dynamic", *named, *words, code=2)[1]
    )


def test_an_adapter_with_a_name_that_nothing_chooses_is_refused(tmp_path):
    adapter = write_adapter(tmp_path / "adapter", STARTER, 1)
    err = llmctl("generate", STARTER, *ASK, "--adapter", f"a={adapter}", code=2)[1]
    assert "--adapter NAME=FOLDER needs --input" in err


@pytest.mark.parametrize("engine", ["fused", "dynamic"])
def test_a_line_that_cannot_be_answered_has_an_error_and_the_others_answers(tmp_path, engine):
    questions = [{"src": "Ask about this: Tom sings."}, {"src": "tea " * 900}, {"src": "Ask about this: Mia sings."}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    words = ["--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", "--max-new-tokens", "4"]
    _, err = llmctl("generate", STARTER, "--engine", engine, *words, code=1)
    assert "1 of 3 could not be answered" in err
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["src"] for row in rows] == [row["src"] for row in questions]
    assert ["error" in row for row in rows] == [False, True, False] and "512 positions" in rows[1]["error"]
    assert rows[0]["output"] and rows[2]["output"] and not rows[1]["output"]


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path):
    file = write_questions(tmp_path / "in.jsonl")
    (tmp_path / "in.jsonl").write_text(file.read_text() * 6)
    words = ["generate", STARTER, "--input", file, "--max-new-tokens", "40", "--batch-size", "1"]
    llmctl(*words, "--output", tmp_path / "whole.jsonl")
    output, journal = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.answers"
    process = subprocess.Popen([sys.executable, "-m", "llmctl", *map(str, words), "--output", str(output)],
                               stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 120
    while (not journal.exists() or journal.read_bytes().count(b"\n") < 4) and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    done = journal.read_bytes().count(b"\n") - 1
    changed = llmctl(*words, "--output", output, "--repetition-penalty", "1.2", code=2)[1]
    assert "repetition_penalty: '1.0' then, '1.2' now" in changed
    err = llmctl(*words, "--output", output)[1]
    assert f"continuing after {done} of {6 * len(NAMES)} answers" in err
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes() and not journal.exists()


@pytest.mark.assets
def test_the_recorded_story_is_told_by_every_engine(assets, tmp_path):
    folder, golden = story_model(assets, tmp_path / "model")
    llmctl("export", folder, "--output", tmp_path / "program")
    words = ["--prompt", "", "--max-new-tokens", golden["new_tokens"], "--no-stream"]
    assert len(golden["text"]) > 400
    for model, more in ((folder, ["--engine", "dynamic"]), (tmp_path / "program", []), (folder, []),
                        (folder, ["--speculate", "4"]), (folder, ["--weights", "float32", "--batch-size", "1"])):  # fmt: skip
        assert llmctl("generate", model, *more, *words)[0].startswith(golden["text"]), (model, more)
