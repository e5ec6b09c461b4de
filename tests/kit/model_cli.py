"""Commands that run models, in this process."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmctl.cli import main

STARTER = Path(__file__).resolve().parents[2] / "plugins" / "llama" / "llmctl_llama" / "starter" / "model"


ASK = ["--prompt", "Deny this: Tom has a red kite.", "--max-new-tokens", "12", "--no-stream"]


def llmctl(*words, code=0, stdin=None):
    """Standard output and error of a command."""
    with CliRunner().isolation(input=stdin) as streams, pytest.raises(SystemExit) as stopped:
        main(list(map(str, words)))
    out, err = (stream.getvalue().decode() for stream in streams[:2])
    assert stopped.value.code == code and "Traceback" not in err, out + err
    return out, err


NAMES = ("Tom", "Mia", "Leo", "Ida", "Max", "Eva", "Ben")


def write_questions(path, **more):
    path.write_text("".join(json.dumps({"src": f"Ask about this: {name} likes tea.", **more}) + "\n" for name in NAMES))
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
