"""Whether what a page names exists: commands and their options, keys of configurations. Nothing is run."""

import re
import shlex

import click
import yaml

from llmctl.cli import COMMANDS, cli
from llmctl.commands import config_schema
from llmctl.config import schema
from llmctl.errors import LlmctlError
from llmctl.jobs.registry import resolve

CONFIGS = [resolve(where) for where in config_schema.CONFIGS.values()]

FIELDS = {cls: {row[0] for row in schema.describe(cls)} for cls in CONFIGS}

SECTIONS = sorted({name.partition(".")[0] for names in FIELDS.values() for name in names})

KEY = re.compile(rf"({'|'.join(SECTIONS)})\.([a-z]\w*)(?:: (.+)| *= *(.+))?")
"""A key as a page names it: alone, or with a value as in YAML or for ``--set``."""

FILES = {"json", "jsonl", "npz", "safetensors", "yaml", "so", "py"}
"""Endings of names such as ``train.jsonl``, which are no keys."""


def options_of(command: click.Command) -> dict[str, bool]:
    """Options of a command -> whether a value follows."""
    found = {"--help": False}
    for option in command.params:
        if isinstance(option, click.Option):
            follows = not option.is_flag and not option.count
            found |= dict.fromkeys([*option.opts, *option.secondary_opts], follows)
    return found


def unknown_in_command(line: str) -> list[str]:
    """Commands and options that a command line names and llmctl does not have."""
    command, known = cli, options_of(cli)
    given = shlex.split(line, comments=True)[1:]
    # The name of a command may be two words.
    given = [" ".join(given[:2]), *given[2:]] if " ".join(given[:2]) in COMMANDS else given
    words = iter(given)
    unknown = []
    for word in words:
        if word.startswith("-") and word != "-":
            name, value, _ = word.partition("=")
            if name not in known:
                unknown.append(word)
            elif known[name] and not value:
                next(words, None)
        elif isinstance(command, click.Group):
            found = command.get_command(click.Context(cli), word)
            if found is None:
                return [*unknown, word]
            command, known = found, known | options_of(found)
    return unknown


def wrong_key(text: str) -> str:
    """What is wrong with a key that a page names, with its value if it has one; empty = nothing, or it is no key."""
    match = KEY.fullmatch(text)
    if not match or match[2] in FILES:
        return ""
    name, value = f"{match[1]}.{match[2]}", match[3] or match[4]
    takers = [cls for cls, names in FIELDS.items() if name in names]
    if not takers:
        return f"{name} is a key of no configuration"
    if value is None:
        return ""
    for cls in takers:
        try:
            schema.build(cls, {match[1]: {match[2]: yaml.safe_load(value)}})
            return ""
        except LlmctlError as error:
            wrong = str(error)
    return wrong


def wrong_config(text: str) -> str:
    """What is wrong with a configuration that a page shows, whole or in part; empty = one of the commands takes it."""
    wrong = []
    for cls in CONFIGS:
        try:
            schema.build(cls, yaml.safe_load(text) or {})
            return ""
        except LlmctlError as error:
            wrong.append(str(error))
    return "\n".join(wrong)
