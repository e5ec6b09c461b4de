"""``llmctl models``: the installed families, and what a card says. Plain text, so that nothing heavy is imported."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from llmctl import plugins
from llmctl.card.capabilities import METHODS, Experimental, Unsupported
from llmctl.card.dims import Dims
from llmctl.card.family import Tensor
from llmctl.card.shapes import CUT_SYMBOLS
from llmctl.card.sharding import Split
from llmctl.card.support import state
from llmctl.card.weight_map import WeightMapping
from llmctl.commands.completion import complete_family
from llmctl.commands.recipe import PLACEHOLDERS, recipes
from llmctl.commands.renamed import Renamed
from llmctl.errors import DISTRIBUTION, PluginError
from llmctl.plugins import matrix
from llmctl.plugins.hookspecs import GROUP


@click.command()
@click.argument("name", required=False, shell_complete=complete_family)
@click.option(
    "--explain",
    is_flag=True,
    help="List every tensor: name, shape, torch name, transpose, tensor-parallel split, slot.",
)
@click.option(
    "--size", metavar="NAME", help="A size on the family's card; with --explain, show the numbers of all its layers."
)
@click.option("--degree", type=click.IntRange(1), default=1, help="Tensor-parallel degree for --explain.")
@click.option(
    "--matrix",
    "show_matrix",
    is_flag=True,
    help="Show the support matrix: what each family supports, as its tests prove.",
)
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the support matrix as Markdown.")
@click.option("--check-matrix", "check", cls=Renamed, former=["--check"], metavar="FILE", type=click.Path(path_type=Path),
              help="Fail if the support matrix in this file is out of date.")  # fmt: skip
@click.option("--update-matrix", "update", cls=Renamed, former=["--update"], metavar="FILE", type=click.Path(path_type=Path),
              help="Update the support matrix in this file.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    name: str | None,
    explain: bool,
    size: str | None,
    degree: int,
    show_matrix: bool,
    as_markdown: bool,
    check: Path | None,
    update: Path | None,
    as_json: bool,
) -> None:
    """List the installed model families, or describe the family NAME."""
    if show_matrix or as_markdown or check or update:
        if name or explain or size or degree > 1:
            raise click.UsageError("the matrix covers all families; leave out NAME, --explain, --size and --degree")
        _matrix(as_json, check, update)
        return
    if name is None:
        if explain or size or degree > 1:
            raise click.UsageError("--explain, --size and --degree need the NAME of a family")
        rows = _installed()
        click.echo(json.dumps(rows, indent=1) if as_json else _list(rows))
        return
    if degree > 1 and not explain:
        raise click.UsageError("--degree is for --explain; add it, or leave out --degree")
    plugin = plugins.load(name)
    if explain:
        rows = _explain(plugin, size, degree)
        click.echo(json.dumps(rows, indent=1) if as_json else _table(rows))
        return
    summary = _summary(plugin, size)
    click.echo(json.dumps(summary, indent=1) if as_json else _card(plugin, summary))


def _matrix(as_json: bool, check: Path | None, update: Path | None) -> None:
    if update:
        matrix.update(update)
    elif check:
        matrix.check(check)
        click.echo(f"the support matrix in {check} is up to date")
    elif as_json:
        click.echo(json.dumps(matrix.as_json(matrix.rows()), indent=1))
    else:
        click.echo(matrix.markdown(matrix.rows()))


def _installed() -> list[dict[str, str]]:
    rows, families = [], plugins.Families()
    for found in plugins.installed():
        row = {"family": found.name, "distribution": found.distribution, "version": found.version}
        try:
            card = families.load(found.name).card
            rows.append({**row, "status": "ok", "note": f"{len(card.sizes)} sizes; {', '.join(card.architectures)}"})
        except PluginError as error:
            rows.append({**row, "status": "BROKEN", "note": str(error)})
    return rows


def _list(rows: Sequence[dict[str, str]]) -> str:
    if not rows:
        return f"No family is installed (entry points {GROUP}). Try: pip install '{DISTRIBUTION}[NAME]'"
    lines = []
    for row in rows:
        first, *more = row["note"].splitlines()
        lines += [{**row, "note": first}, *({**dict.fromkeys(row, ""), "note": line} for line in more)]
    return _table(lines)


def _summary(plugin: plugins.Plugin, size: str | None) -> dict[str, Any]:
    card = plugin.card
    chosen = [size] if size else list(card.sizes)
    sizes = []
    for key in chosen:
        dims = card.dims_of(key)
        known = card.sizes[key]
        sizes.append(
            {"size": key, "parameters": card.count(dims), "published": known.parameters, "source": known.source}
        )
    states = {}
    for method in METHODS:
        found = state(card, method)
        note = found.reason if isinstance(found, Unsupported) else getattr(found, "note", "")
        label = {Unsupported: "no", Experimental: "experimental"}.get(type(found), "not refused by the card")
        states[method] = f"{label}: {note}" if note else label
    return {"family": card.name, "distribution": str(plugin.installed), "architectures": list(card.architectures),
            "card": card.hash(), "sizes": sizes, "methods": states,
            "recipes": {name: list(recipes(plugin, name)) for name in PLACEHOLDERS}}  # fmt: skip


def _card(plugin: plugins.Plugin, summary: dict[str, Any]) -> str:
    doc = (importlib.import_module(plugin.installed.module).__doc__ or "").strip().splitlines()
    lines = [*doc[:1], f"{summary['distribution']}, card {summary['card']}, {', '.join(summary['architectures'])}", ""]
    rows = [
        {**row, "parameters": f"{row['parameters']:,}", "published": f"{row['published']:,}"}
        for row in summary["sizes"]
    ]
    shown = [f"llmctl --model {plugin.card.name} {name} --recipe {'|'.join(known)}"
             for name, known in summary["recipes"].items() if known]  # fmt: skip
    return "\n".join([*lines, _table(rows), "", *shown]).rstrip()


def _explain(plugin: plugins.Plugin, size: str | None, degree: int) -> list[dict[str, Any]]:
    card = plugin.card
    if not card.sizes and size is None:
        raise PluginError(f"the card of {card.name} lists no size to explain")
    dims = card.dims_of(size or next(iter(card.sizes)))
    if size:
        return _rows(plugin, dims, degree)
    # Without a size every row of the table is shown once: one layer, sizes divisible by the degree, all flags.
    even = {symbol: max(degree, 2) * dims[symbol] for symbol in CUT_SYMBOLS if symbol in dims}
    one = dims.replace(**even, **{symbol: 1 for symbol in ("layers", "experts") if symbol in dims})
    flags = {param.when.removeprefix("not ") for param in card.params if param.when}
    variants = [one, *(one.replace(**dict.fromkeys(flags, value)) for value in (True, False))]
    rows: dict[str, dict[str, Any]] = {}
    for dims in variants:
        for row in _rows(plugin, dims, max(degree, 2), symbolic=True):
            rows.setdefault(row["name"], row)
    return list(rows.values())


def _rows(plugin: plugins.Plugin, dims: Dims, degree: int, symbolic: bool = False) -> list[dict[str, Any]]:
    card, hooks = plugin.card, plugin.hooks
    mappings = {mapping.target: mapping for mapping in hooks.weight_map(card=card, dims=dims, source="torch")}
    try:
        splits = hooks.tensor_parallel_rules(card=card, dims=dims, degree=degree)
    except ValueError as error:
        raise PluginError(str(error)) from None
    return [_row(t, mappings.get(t.name), splits.get(t.name), symbolic) for t in card.expand(dims)]


def _row(tensor: Tensor, mapping: WeightMapping | None, split: Split | None, symbolic: bool) -> dict[str, Any]:
    name, torch = tensor.name, mapping.source if mapping else tensor.torch_name
    shape = "x".join(map(str, tensor.shape))
    if symbolic:
        shape = tensor.param.shape
        name, torch = (
            text.replace(".0.", ".{layer}.", 1) if tensor.layer is not None else text for text in (name, torch)
        )
    return {
        "name": name,
        "shape": shape,
        "torch": torch,
        "transpose": "yes" if tensor.transpose else "no",
        "split": f"axis {split.axis} by {split.symbol}" if split else "replicated",
        "slot": tensor.slot or "-",
        "when": tensor.param.when or "always",
    }


def _table(rows: Sequence[dict[str, Any]]) -> str:
    columns = list(rows[0])
    cells = [columns, *([str(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )
