"""Writes the generated parts of docs/: configuration, commands, hooks, what a card may say, and blocks. ``--check`` only says whether they are stale.

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->`` in a page that is otherwise written by
hand. Run with: python tools/make_docs.py
"""

import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Container
from pathlib import Path

import click

import llmctl
from llmctl import ConfigField, Family, Gguf, Moe, Param, Size, TokenFacts, nn
from llmctl.card import slots
from llmctl.cli import COMMANDS, cli
from llmctl.config.dpo import DpoConfig
from llmctl.config.finetune import FinetuneConfig
from llmctl.config.pretrain import PretrainConfig
from llmctl.config.quantize import QuantizeConfig
from llmctl.config.schema import describe
from llmctl.config.serve import ServeConfig
from llmctl.plugins import hookspecs
from llmctl.serve.apis import fields

DOCS = Path(__file__).resolve().parents[1] / "docs"
CORE = DOCS.parent / "core" / "llmctl"
HELPERS = {
    "card/presets.py": "Fields and rows",
    "card/sizes.py": "Data next to the card",
    "card/tokens.py": "",
    "card/rope.py": "RoPE and ALiBi",
    "card/alibi.py": "",
    "card/fill_decoder.py": "The fused decoder",
    "card/decoder_spec.py": "",
    "card/weight_map.py": "Names and packing in files",
}
"""Where what ``llmctl`` offers to cards is defined -> heading; empty = under the one before."""

CARD = {cls.__name__: cls for cls in (Family, Param, ConfigField, Size, Moe, TokenFacts, Gguf)}
"""Classes of a card, each with a table of its fields."""


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


def attributes(cls: type) -> str:
    """A table of what the docstring of a dataclass says about its fields, and their defaults."""
    lines = ["| field | default | meaning |", "|---|---|---|"]
    said = dict(arguments(inspect.getdoc(cls) or ""))
    for row in dataclasses.fields(cls):
        made = row.default if row.default_factory is dataclasses.MISSING else row.default_factory()
        shown = f"{type(made).__name__}()" if dataclasses.is_dataclass(made) else repr(made)
        default = "" if made is dataclasses.MISSING else f"`{shown}`"
        lines.append(f"| `{row.name}` | {default} | {said[row.name]} |")
    return "\n".join(lines)


def arguments(doc: str) -> list[tuple[str, str]]:
    """Names and texts of the section ``Args`` or ``Attributes`` of a docstring, each on one line, as Markdown."""
    found: list[tuple[str, str]] = []
    _, _, section = doc.partition("\nArgs:\n") if "\nArgs:\n" in doc else doc.partition("\nAttributes:\n")
    for line in section.splitlines():
        if not line.startswith("    "):
            break
        if not line.startswith("     "):
            name, _, text = line.strip().partition(": ")
            found.append((name, text))
        else:
            found[-1] = found[-1][0], f"{found[-1][1]} {line.strip()}"
    return [(name, text.replace("``", "`").replace("|", "\\|")) for name, text in found]


def card() -> str:
    """The tables of everything that a card is made of."""
    return "\n\n".join(
        f"### {cls.__name__}\n\n{summary(cls.__doc__ or '')}\n\n{attributes(cls)}" for cls in CARD.values()
    )


def summary(doc: str) -> str:
    """What a docstring says before its sections, as Markdown."""
    text = re.split(r"\n\s*\n(?:Args|Attributes|Raises|Returns):\n", inspect.cleandoc(doc))[0]
    return text.replace("``", "`")


def names() -> str:
    """Tables of the names that slots and kernels have."""
    tables = {"slot": slots.SLOTS, "slot outside the layers": slots.OUTER_SLOTS, **slots.KERNELS}
    texts = []
    for title, rows in tables.items():
        lines = [f"| {title} | meaning |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in rows.items())]
        texts.append("\n".join(lines))
    return "\n\n".join(texts)


def blocks() -> str:
    """The public names of ``llmctl.nn``, by module, read without importing paddle."""
    texts = []
    for module, names in nn._MODULES.items():
        tree = ast.parse((CORE / "nn" / f"{module}.py").read_text(encoding="utf-8"))
        texts.append(f"## llmctl.nn: {module}\n\n{summary(ast.get_docstring(tree) or '')}")
        texts += [block(node) for node in documented(tree, names)]
    return "\n\n".join(texts)


def helpers() -> str:
    """The classes and functions of ``llmctl`` that cards use beside those of the card's own tables."""
    texts = []
    for file, heading in HELPERS.items():
        tree = ast.parse((CORE / file).read_text(encoding="utf-8"))
        texts += [f"### {heading}"] if heading else []
        texts += [block(node, "####") for node in documented(tree, llmctl.__all__) if node.name not in CARD]
    return "\n\n".join(texts)


def documented(tree: ast.Module, names: Container[str]) -> list[ast.ClassDef | ast.FunctionDef]:
    """The classes and functions of these names that have a docstring, in the order of the module."""
    nodes = [node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name in names]
    return [node for node in nodes if ast.get_docstring(node)]


def block(node: ast.ClassDef | ast.FunctionDef, level: str = "###") -> str:
    """A heading, the signature and the documentation of a class or function."""
    made = [part for part in getattr(node, "body", ()) if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
    signature = made[0].args if made else getattr(node, "args", None)
    given = ", ".join(map(ast.unparse, fields)) if signature is None else ast.unparse(signature)
    given = given.removeprefix("self, ").removeprefix("self")
    doc = ast.get_docstring(node) or ""
    lines = [f"{level} {node.name}", "", "```python", f"{node.name}({given})", "```", "", summary(doc)]
    said = arguments(doc)
    return "\n".join([*lines, *([""] if said else []), *(f"- `{name}`: {text}" for name, text in said)])


def pretraining() -> str:
    """The tables of a pretraining configuration."""
    return configuration(PretrainConfig)


def preferences() -> str:
    """The rows of a configuration for preference optimization that differ from those of fine-tuning."""
    return configuration(DpoConfig, set(describe(FinetuneConfig)))


def quantizing() -> str:
    """The tables of a configuration for quantization."""
    return configuration(QuantizeConfig)


def chat_fields() -> str:
    """The fields of chat completions, and what the server does with them."""
    return fields.table(fields.CHAT)


def completion_fields() -> str:
    """The fields of completions."""
    return fields.table(fields.COMPLETIONS)


def serving() -> str:
    """The tables of the server's configuration."""
    return configuration(ServeConfig)


PARTS = {
    "configuration": configuration,
    "pretraining": pretraining,
    "preferences": preferences,
    "quantizing": quantizing,
    "commands": commands,
    "hooks": hooks,
    "card": card,
    "names": names,
    "blocks": blocks,
    "helpers": helpers,
    "chat_fields": chat_fields,
    "completion_fields": completion_fields,
    "serving": serving,
}


def render(text: str) -> str:
    """The page with its generated parts made anew."""

    def replace(match: re.Match) -> str:
        return f"<!-- generated: {match[1]} -->\n\n{PARTS[match[1]]()}\n\n<!-- end -->"

    return re.sub(r"<!-- generated: (\w+) -->.*?<!-- end -->", replace, text, flags=re.DOTALL)


def main(arguments: list[str]) -> int:
    """Writes or checks every page; returns the number of stale pages when checking."""
    stale = []
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        made = render(text)
        if made != text:
            stale.append(page.relative_to(DOCS).as_posix())
            if "--check" not in arguments:
                page.write_text(made, encoding="utf-8")
    for name in stale:
        print(f"{'stale' if '--check' in arguments else 'written'}: docs/{name}")
    return len(stale) if "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
