"""Completion in shells of what click does not know: recipes, and keys and values of ``--set``.

Shells end a completed word with a space; not so after ``key=``, which waits for its value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from click.shell_completion import BashComplete, CompletionItem, ZshComplete, add_completion_class


def register() -> None:
    """Makes click use the classes of this module."""
    add_completion_class(Bash)
    add_completion_class(Zsh)


class Bash(BashComplete):
    """Bash, which splits words at ``=``."""

    source_template = BashComplete.source_template.replace(
        "            COMPREPLY+=($value)",
        "            COMPREPLY+=($value)\n            [[ $value == *= ]] && compopt -o nospace",
    )
    _done = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one to complete, and that one: ``key``, ``=``, ``va`` are one word, ``key=va``."""
        words, incomplete = super().get_completion_args()
        if incomplete == "=" and words and "." in words[-1]:
            self._done = words.pop() + "="
            return words, self._done
        if len(words) > 1 and words[-1] == "=" and "." in words[-2]:
            self._done = words[-2] + "="
            return words[:-2], self._done + incomplete
        return words, incomplete

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """A line for the shell, which replaces only what follows ``=``."""
        return super().format_completion(CompletionItem(str(item.value).removeprefix(self._done), item.type, item.help))


class Zsh(ZshComplete):
    """Zsh."""

    source_template = ZshComplete.source_template.replace(
        '                completions_with_descriptions+=("$key":"$descr")',
        '                if [[ "$key" == *= ]]; then assignments+=("$key":"$descr"); '
        'else completions_with_descriptions+=("$key":"$descr"); fi',
    ).replace(
        '    if [ -n "$completions" ]; then',
        '    if [ -n "$assignments" ]; then\n        _describe -V settings assignments -U -S ""\n    fi\n\n'
        '    if [ -n "$completions" ]; then',
    ).replace("    local -a completions\n", "    local -a completions\n    local -a assignments\n")  # fmt: skip


def complete_family(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Installed families."""
    from llmctl.plugins import Families

    return [CompletionItem(name) for name in Families().names if name.startswith(incomplete)]


def complete_recipe(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Recipes of the command: of the family that the command line names, else of all that are installed."""
    from llmctl.commands.recipe import recipes

    command = str(ctx.info_name)
    found = {name: recipe for plugin in _plugins(ctx) for name, recipe in recipes(plugin, command).items()}
    return [
        CompletionItem(name, help=recipe.header().partition("\n")[0])
        for name, recipe in sorted(found.items())
        if name.startswith(incomplete)
    ]


def complete_setting(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Keys of the command's configuration, or after ``key=`` the values that are allowed."""
    from llmctl.config.schema import describe
    from llmctl.jobs.registry import COMMANDS, resolve

    command = str(ctx.info_name)
    names = [command] if command in COMMANDS else list(COMMANDS)
    rows = {row[0]: row for name in names for row in describe(resolve(COMMANDS[name].config))}
    key, equals, value = incomplete.partition("=")
    if not equals:
        return [CompletionItem(f"{name}=", help=row[4]) for name, row in rows.items() if name.startswith(incomplete)]
    return [CompletionItem(f"{key}={it}") for it in _values(rows.get(key)) if it.startswith(value)]


def _values(row: tuple[str, str, str, str, str] | None) -> list[str]:
    if row is None:
        return []
    if row[1] == "true or false":
        return ["true", "false"]
    return row[3].split(" | ") if " | " in row[3] else []


def _plugins(ctx: click.Context) -> Iterator[Any]:
    from llmctl.commands.model_option import ModelOption
    from llmctl.errors import LlmctlError
    from llmctl.plugins import Families

    families = Families()
    named = (ctx.find_object(ModelOption) or ModelOption()).family
    for name in [named] if named in families.names else families.names:
        try:
            yield families.load(name)
        except LlmctlError:
            continue
