"""``llmctl chat`` at a terminal and in a pipe."""

import json
import os
import stat
import sys

import pytest
from kit.model_cli import STARTER, rows_of
from kit.terminal import Terminal

from llmctl.commands.terminal import Reader, history_file

CHAT = [sys.executable, "-m", "llmctl", "chat", STARTER, "--max-new-tokens", "6"]
ENDLESS = """
from types import SimpleNamespace
from llmctl.commands.messages import Messages
from llmctl.commands.terminal import chat
from llmctl.infer.sampling import SamplingParams

class Generator:
    max_positions, tokenizer = 0, SimpleNamespace(chat_template=None)

    def check(self, request, name):
        pass

    def generate(self, requests, show, stopped):
        show(0, "endless")
        while not stopped():
            pass
        return [SimpleNamespace(text="endless", token_ids=[1, 2], finish_reason="stop", error="")]

import llmctl.infer.text.chat
llmctl.infer.text.chat.prompt_ids = lambda *_: [1]
chat(Generator(), SamplingParams(), None, Messages())
"""


@pytest.fixture
def state(tmp_path):
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


def test_lines_are_edited_and_remembered_and_control_d_ends(tmp_path, state):
    first = Terminal(CHAT, state, tmp_path)
    first.until("/help lists commands")
    first.until("> ")
    first.send("/syXstem\x1b[D\x1b[D\x1b[D\x1b[D\x7f one\r")
    first.until("there is no command /sy")
    first.until("> ")
    first.send("Deny this: Tom has a kite.\r")
    assert "[6 tokens, " in first.until(" tokens/s; cut at --max-new-tokens]") + "[6 tokens, "
    first.until("> ")
    first.send("\x04")
    code, _ = first.end()
    assert code == 0
    history = tmp_path / "state" / "llmctl" / "chat_history"
    assert "Deny this: Tom has a kite." in history.read_text() and stat.S_IMODE(history.stat().st_mode) == 0o600
    again = Terminal(CHAT, state, tmp_path)
    again.until("> ")
    again.send("\x1b[A")
    again.until("Tom has a kite.")
    again.send("\x15/exit\r")
    assert again.end()[0] == 0


def test_control_c_stops_the_answer_and_the_chat_goes_on(state):
    session = Terminal([sys.executable, "-c", ENDLESS], state)
    session.until("> ")
    session.send("hello\r")
    session.until("endless")
    session.send("\x03")
    session.until("[2 tokens, ")
    session.until("> ")
    session.send("not finished")
    session.until("not finished")
    session.send("\x03")
    session.until("(Ctrl-D or /exit ends the chat)", again="\x03")
    session.until("> ")
    session.send("/exit\r")
    assert session.end()[0] == 0


def test_a_pipe_gets_answers_and_no_prompts(run_llmctl, tmp_path, state):
    lines = ["Deny this: Tom has a kite.", "/system Be brief.", "/save talk.jsonl", "/save talk.jsonl", "/save", "/nothing",
             "/reset", "/save more.jsonl", "/help", "a \\", "b", '"""c', 'd"""', "/quit", "never"]  # fmt: skip
    done = run_llmctl(*map(str, CHAT[3:]), "-v", stdin="\n".join(lines), cwd=tmp_path, env=state)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3 and "> " not in done.stdout
    for part in (
        "1 turns in talk.jsonl", "talk.jsonl exists; name another file", "name a file: /save FILE", "there is no command /nothing",
        "the conversation is forgotten", "nothing to save yet", "/system TEXT    set", "max_new_tokens 6 (--max-new-tokens)",
    ):  # fmt: skip
        assert part in done.stderr, part
    (row,) = rows_of(tmp_path / "talk.jsonl")
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
    assert row["messages"][2]["content"] == done.stdout.splitlines()[0]
    assert not (tmp_path / "state").exists()
    again = run_llmctl("generate", str(STARTER), "--input", "talk.jsonl", "--max-new-tokens", "2", cwd=tmp_path)
    assert again.returncode == 0 and json.loads(again.stdout)["output"]


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        (["one", "two"], ["one", "two"]),
        (["one\\", "two\\", "three"], ["one\ntwo\nthree"]),
        (["one\\"], ["one\n"]),
        (['"""one', "two", '"""', "three"], ["one\ntwo", "three"]),
        (['"""one"""'], ["one"]),
        (['"""', "  one", '  """'], ["  one"]),
        (['"""one'], ["one"]),
    ],
)
def test_messages_have_one_line_or_several(lines, messages):
    left = iter(lines)
    reader = Reader(lambda prompt: next(left, None), pytest.fail)
    assert list(iter(reader.message, None)) == messages


def test_a_history_is_kept_where_only_the_user_reads_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file = history_file()
    assert file == tmp_path / "llmctl" / "chat_history" and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    file.chmod(0o644)
    assert history_file() is None
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    assert history_file() is None and not (tmp_path / "elsewhere").exists()
    monkeypatch.setenv("XDG_STATE_HOME", os.devnull)
    assert history_file() is None
