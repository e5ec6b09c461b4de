"""The options of all commands: one name for one thing, one thing for one name."""

import json
import re
from collections import defaultdict

import click
import pytest
from kit.model_cli import STARTER, llmctl

from llmctl.cli import cli
from llmctl.commands.renamed import Renamed

TRAINING = {"finetune", "dpo", "pretrain"}
MODEL = {"generate", "chat", "bench", "export", "convert", "merge", *TRAINING, "plan", "migrate", "data build", "data doctor",
         "data inspect", "eval"}  # fmt: skip
SHARED = {
    "--model": MODEL,
    "--set": {*TRAINING, "plan"},
    "--json": {*TRAINING, "plan", "bench", "export", "convert", "merge", "data build", "data doctor", "data inspect", "verify",
               "env", "models", "ops doctor", "eval"},
    "--quiet": {*TRAINING, "plan", "generate", "chat", "bench", "export", "convert", "merge", "data build", "verify"},
    "--verbose": {*TRAINING, "plan", "generate", "chat", "bench", "export", "convert", "merge", "data build", "verify"},
    "--output": {*TRAINING, "generate", "bench", "export", "convert", "merge", "data build", "data merge", "report"},
    "--overwrite": {*TRAINING, "export", "convert", "merge", "data build", "data merge"},
    "--check": {*TRAINING, "convert"},
    "--adapter": {"generate", "chat", "bench", "export", "eval"},
    "--base": {"generate", "chat", "bench", "export", "convert", "merge"},
    "--allow-other-base": {"generate", "chat", "bench", "export", "merge"},
    "--chat-template": {"generate", "chat", "data doctor", "eval"},
    "--system": {"generate", "chat"},
    "--tokenizer": {"data build", "data inspect"},
    "--seed": {"generate", "chat", "data index"},
    "--dtype": {"convert", "merge"},
    "--max-shard-size": {"convert", "merge"},
    "--format": {"generate", "data doctor"},
    "--column": {"generate", "data doctor"},
    "--weights": {"generate", "chat", "bench", "export", "eval"},
    "--group": {"generate", "chat", "bench", "export", "eval"},
    "--engine": {"generate", "chat", "bench", "export", "eval"},
}  # fmt: skip
"""Option -> commands that do what it stands for, and so have it by this name."""
FLAGS = {"--json", "--quiet", "--verbose", "--overwrite", "--check", "--allow-other-base", "--resume", "--print-config"}
FORMER = {
    ("export", "--out"): "--output", ("data doctor", "--model-folder"): "--model", ("data build", "--format"): "--files",
    ("data index", "--cache"): "--index-cache", ("models", "--check"): "--check-matrix", ("models", "--update"): "--update-matrix",
    **{(name, "--dry-run"): "--check" for name in ("finetune", "dpo", "pretrain", "convert")},
}  # fmt: skip
"""Names that are accepted and not shown -> the name now."""
AVOIDED = {
    "--out": "--output", "--output-dir": "--output", "--dest": "--output", "--target": "--output", "--force": "--overwrite",
    "--model-path": "--model", "--model-folder": "--model", "--family": "--model", "--lora": "--adapter", "--as-json": "--json",
    "--dry-run": "--check", "--validate": "--check", "--template": "--chat-template", "--max-tokens": "--max-new-tokens",
    "--random-seed": "--seed", "--data-type": "--dtype", "--silent": "--quiet", "--debug": "--verbose",
}  # fmt: skip
"""Name that no option shows -> what it is called here."""


def commands(command=cli, path=(), ctx=None):
    """Each command that does something, by its words."""
    ctx = ctx or click.Context(cli)
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            yield from commands(command.get_command(ctx, name), (*path, name), ctx)
    else:
        yield " ".join(path), command


def options(command):
    return [option for option in command.params if isinstance(option, click.Option)]


def shown(option):
    former = option.former if isinstance(option, Renamed) else frozenset()
    return [] if option.hidden else [name for name in (*option.opts, *option.secondary_opts) if name not in former]


@pytest.fixture(scope="module")
def table():
    """Shown name -> command -> option."""
    found = defaultdict(dict)
    for path, command in commands():
        for option in options(command):
            for name in shown(option):
                assert path not in found[name], (path, name)
                found[name][path] = option
    return found


def test_what_several_commands_do_has_the_same_name_everywhere(table):
    assert not {name: missing for name, users in SHARED.items() if (missing := users - set(table[name]))}


def test_a_name_means_the_same_kind_of_value_everywhere(table):
    for name, found in table.items():
        kinds = {path: (option.is_flag, option.multiple) for path, option in found.items()}
        assert len(set(kinds.values())) == 1 or name in ("--adapter", "--weights"), (name, kinds)
        assert (name in FLAGS) <= all(option.is_flag for option in found.values()), name


def test_names_are_of_one_style_and_every_option_says_what_it_does(table):
    for name, found in table.items():
        for path, option in found.items():
            help_text = option.help or ""
            assert help_text and help_text[0].isupper() or help_text.startswith(("auto", "hf", "static", "fused")), (
                path,
                name,
            )
        assert name == name.lower() and "_" not in name and name not in AVOIDED


def test_former_names_are_accepted_and_not_shown(table):
    found = {}
    for path, command in commands():
        for option in options(command):
            former = option.former if isinstance(option, Renamed) else option.opts if option.hidden else ()
            for name in former:
                found[path, name] = "--model" if option.hidden else shown(option)[0]
                assert not re.search(rf"{name}(?![\w-])", command.get_help(click.Context(command))), (path, name)
    assert found == FORMER


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["generate", STARTER], "error: give one of --prompt, --input and --chat\nllmctl generate --help lists"),
        (["export", STARTER], "error: missing option '--output'\nllmctl export --help lists arguments and options\n"),
        (["finetune", "--cheque"], "error: no such option"),
        (["bench", STARTER, "--rounds", "x"], "error: invalid value for '--rounds': 'x' is not a valid integer"),
        (["finetun"], "error: unknown command 'finetun'; did you mean 'finetune'?\nllmctl --help lists"),
        (["generate", "absent", "--prompt", "a"], "error: "),
    ],
)
def test_all_errors_have_one_style(words, expected):
    err = llmctl(*words, code=2)[1]
    assert err.startswith(expected) and "Usage" not in err and "Error" not in err


def test_results_are_words_json_or_nothing(tmp_path):
    words = ["convert", STARTER, "--to", "hf"]
    assert "written: 38 tensors" in llmctl(*words, "--output", tmp_path / "a")[0]
    out = json.loads(llmctl(*words, tmp_path / "b", "--json")[0])
    assert (
        out["event"] == "end"
        and out["output"] == str(tmp_path / "b")
        and out["parameters"] == 900864
        and out["written"]
    )
    assert llmctl(*words, tmp_path / "c", "-q") == ("", "")
    assert "is a complete llama model" in llmctl(*words[:2], "--dry-run")[0]
    assert "give one of them" in llmctl(*words, tmp_path / "d", "--output", tmp_path / "e", code=2)[1]
    packed = json.loads(llmctl("export", STARTER, "--engine", "fused", "--out", tmp_path / "p", "--json")[0])
    assert packed["engine"] == "fused" and packed["bytes"] > 10**6
    assert json.loads(llmctl("verify", tmp_path / "b", "--json")[0])["ok"]
    rounds = json.loads(
        llmctl(
            "bench",
            "--model",
            "llama",
            "--random",
            "layers=1,hidden=64",
            "--rounds",
            "1",
            "--new-tokens",
            "2",
            "--json",
            "-q",
        )[0]
    )
    assert rounds["engine"] and len(rounds["rounds"]) == 1
