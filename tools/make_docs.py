"""Writes the generated parts of docs/: configuration, commands and hooks. ``--check`` only says whether they are stale.

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->`` in a page that is otherwise written by
hand. Run with: python tools/make_docs.py
"""

import inspect
import re
import sys
from collections.abc import Container
from pathlib import Path

import click

from llmctl import hookspecs
from llmctl.cli import COMMANDS, cli
from llmctl.config import FinetuneConfig, describe
from llmctl.config_dpo import DpoConfig
from llmctl.config_pretrain import PretrainConfig

DOCS = Path(__file__).resolve().parents[1] / "docs"


def configuration(cls: type = FinetuneConfig, known: Container = ()) -> str:
    """A table for each section of a configuration, without rows that are known from elsewhere."""
    lines, section = [], ""
    for key, kind, default, allowed, doc in (row for row in describe(cls) if row not in known):
        if key.partition(".")[0] != section:
            section = key.partition(".")[0]
            lines += ["", f"### {section}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
        limits = f" Allowed: {allowed}.".replace(" | ", ", ") if allowed else ""
        lines.append(f"| `{key}` | {kind} | `{default}` | {doc}{limits} |")
    return "\n".join(lines).strip()


def commands() -> str:
    """The help text of llmctl, of each of its commands and of theirs."""
    parts = [("llmctl", cli)]
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        below = getattr(command, "commands", {})
        parts += [(f"llmctl {name}", command), *((f"llmctl {name} {sub}", below[sub]) for sub in sorted(below))]
    texts = []
    for name, command in parts:
        context = click.Context(command, info_name=name, max_content_width=100, terminal_width=100)
        texts.append(f"### {name}\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(texts)


def hooks() -> str:
    """Signature and documentation of every hook."""
    texts = []
    for name, function in vars(hookspecs).items():
        if hasattr(function, f"{hookspecs.PROJECT}_spec"):
            signature = str(inspect.signature(function)).replace("'", "")
            texts.append(f"### {name}\n\n```python\n{name}{signature}\n```\n\n{inspect.getdoc(function)}")
    return "\n\n".join(texts)


def pretraining() -> str:
    """The tables of a pretraining configuration."""
    return configuration(PretrainConfig)


def preferences() -> str:
    """The rows of a configuration for preference optimisation that differ from those of fine-tuning."""
    return configuration(DpoConfig, set(describe(FinetuneConfig)))


PARTS = {
    "configuration": configuration,
    "pretraining": pretraining,
    "preferences": preferences,
    "commands": commands,
    "hooks": hooks,
}


def render(text: str) -> str:
    """The page with its generated parts made anew."""

    def replace(match: re.Match) -> str:
        return f"<!-- generated: {match[1]} -->\n\n{PARTS[match[1]]()}\n\n<!-- end -->"

    return re.sub(r"<!-- generated: (\w+) -->.*?<!-- end -->", replace, text, flags=re.DOTALL)


def main(arguments: list[str]) -> int:
    """Writes or checks every page; the number of stale pages when checking."""
    stale = []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        made = render(text)
        if made != text:
            stale.append(page.name)
            if "--check" not in arguments:
                page.write_text(made, encoding="utf-8")
    for name in stale:
        print(f"{'stale' if '--check' in arguments else 'written'}: docs/{name}")
    return len(stale) if "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
