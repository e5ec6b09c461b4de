"""``llmctl convert``: converts a model folder to another layout, data type or shard size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llmctl import plugins
from llmctl.commands.messages import Messages, messages, results
from llmctl.commands.model_option import model_option
from llmctl.commands.renamed import Renamed
from llmctl.io.progress import Progress
from llmctl.io.sizes import parse_bytes


@click.command()
@click.argument("source", type=click.Path(path_type=Path), required=False)
@click.argument("target", type=click.Path(path_type=Path), required=False)
@model_option("The same as SOURCE; or the family of the model.")
@click.option("--to", "layout", type=click.Choice(["hf", "native"]), default="native", show_default=True,
              help="hf: names and layout of Hugging Face; native: those of paddle.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["keep", "float32", "float16", "bfloat16"]), default="keep",
              show_default=True, help="Data type of the weights in TARGET.")  # fmt: skip
@click.option("--max-shard-size", default="5GB", show_default=True, help="Maximum size of a weight file, e.g. 500MB.")
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="If SOURCE is an adapter: folder of its base model, if it has moved.",
)
@click.option("--output", type=click.Path(path_type=Path), help="The same as TARGET.")
@click.option(
    "--check",
    cls=Renamed,
    former=["--dry-run"],
    is_flag=True,
    help="Read and check every tensor, write nothing; TARGET is not needed.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing TARGET.")
@results
@click.pass_context
def command(
    ctx: click.Context,
    source: Path | None,
    target: Path | None,
    layout: str,
    dtype: str,
    max_shard_size: str,
    base: Path | None,
    output: Path | None,
    check: bool,
    overwrite: bool,
) -> None:
    """Convert the model in the folder SOURCE to another layout or data type, in the folder TARGET.

    An adapter is converted between the formats of PEFT (hf) and PaddleNLP (native).
    """
    from llmctl.adapters.folder import is_adapter
    from llmctl.checkpoint.hf_config import read_config

    say = messages(ctx)
    if target is not None and output is not None:
        raise click.UsageError("TARGET and --output are the same; give one of them")
    target = target or output
    if target is None and not check and ctx.obj.names_folder:
        source, target = None, source
    folder = ctx.obj.folder_or(source, "SOURCE")
    if target is None and not check:
        raise click.UsageError("TARGET is missing; it can be left out only with --check")
    shard_bytes = parse_bytes(max_shard_size, "--max-shard-size ")
    if is_adapter(folder):
        if max_shard_size != "5GB":
            raise click.UsageError("--max-shard-size has no effect on an adapter, which is a single file")
        _adapter(folder, None if check else target, layout, dtype, base, ctx.obj.family, overwrite, say)
        return
    if base:
        raise click.UsageError(f"--base has no effect: {folder} is not an adapter; leave it out")
    config = read_config(folder)
    where = str(folder / "config.json")
    plugin = plugins.resolve(ctx.obj.family, config, where)
    dims = plugin.card.dims_from_config(config, where)

    from llmctl.checkpoint import convert as conversion

    opened = conversion.open_source(folder, plugin, dims)
    facts: dict[str, Any] = {
        "family": plugin.card.name,
        "tensors": len(opened.state),
        "parameters": plugin.card.count(dims),
        "layout": opened.layout,
    }
    what = f"{len(opened.state)} tensors, {plugin.card.count(dims):,} parameters, layout {opened.layout}"
    if check:
        with Progress("reading the model", opened.folder.nbytes) as progress:
            not_finite = conversion.verify(opened, progress)
        if not_finite:
            click.echo(f"warning: values are not finite in {conversion.shown(not_finite)}", err=True)
        say.result(
            f"{folder} is a complete {plugin.card.name} model: {what}", model=folder, finite=not not_finite, **facts
        )
        return
    assert target is not None
    with Progress("writing the model", opened.folder.nbytes) as progress:
        made = conversion.convert(opened, target, layout, dtype, shard_bytes, overwrite, progress)
    done = "written" if made else "is already converted"
    say.result(f"{target} {done}: {what} -> {layout}", output=target, written=bool(made), to=layout, **facts)


def _adapter(
    source: Path,
    target: Path | None,
    layout: str,
    dtype: str,
    base: Path | None,
    family: str,
    overwrite: bool,
    say: Messages,
) -> None:
    """Converts an adapter, or checks it if there is no target."""
    from llmctl.adapters import folder as folders
    from llmctl.checkpoint import atomic_folder

    opened = folders.open_adapter(source, base, family)
    what = f"{opened.adapter.summary} of {opened.plugin.card.name}"
    if target is None:
        say.result(f"{source} is a complete adapter: {what}, base {opened.base}", adapter=source, base=opened.base)
        return
    stored = opened.adapter.dtype if dtype == "keep" else dtype
    with atomic_folder(target, overwrite) as work:
        folders.write(work, opened.adapter, opened.plugin, opened.dims, stored, layout)
        folders.copy_tokenizer(source, work, opened.plugin.card)
    say.result(f"{target} written: {what} -> {layout}", output=target, to=layout, base=opened.base)
