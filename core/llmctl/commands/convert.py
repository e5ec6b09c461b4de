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

GGUF = "gguf"
QUANTIZED = ("q8_0", "q4_0", "q4_1")
"""As ``checkpoint.gguf.write.QUANTIZED``."""

SHARD_SIZE = "5GB"
"""Default of ``--max-shard-size``."""


@click.command()
@click.argument("source", type=click.Path(path_type=Path), required=False)
@click.argument("target", type=click.Path(path_type=Path), required=False)
@model_option("The same as SOURCE; or the family of the model.")
@click.option("--to", "layout", type=click.Choice(["hf", "native", "gguf"]), default="native", show_default=True,
              help="hf: names and layout of Hugging Face; native: those of paddle; gguf: a file for llama.cpp.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["keep", "float32", "float16", "bfloat16", *QUANTIZED]), default="keep",
              show_default=True, help="Data type of the weights in TARGET; q8_0, q4_0 and q4_1 are codes of gguf, rounded to nearest.")  # fmt: skip
@click.option(
    "--max-shard-size",
    metavar="SIZE",
    default=SHARD_SIZE,
    show_default=True,
    help="Maximum size of a weight file, e.g. 500MB.",
)
@click.option(
    "--base",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="If SOURCE is an adapter: folder of its base model, if it has moved.",
)
@click.option("--output", metavar="PATH", type=click.Path(path_type=Path), help="The same as TARGET.")
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
    """Convert the model in the folder SOURCE to another layout or data type, in the folder or GGUF file TARGET.

    Weights of a quantized checkpoint become floats, except in GGUF.

    An adapter is converted between the formats of PEFT (hf) and PaddleNLP (native).
    """
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
    adapter = _check_options(folder, layout, dtype, max_shard_size, base)
    goal = None if check else target
    if adapter:
        _adapter(folder, goal, layout, dtype, base, ctx.obj.family, overwrite, say)
    else:
        _model(folder, goal, layout, dtype, shard_bytes, ctx.obj.family, overwrite, say)


def _check_options(folder: Path, layout: str, dtype: str, max_shard_size: str, base: Path | None) -> bool:
    """Whether the folder holds an adapter; options that have no effect on what it holds are refused."""
    from llmctl.adapters.folder import is_adapter

    adapter = is_adapter(folder)
    if dtype in QUANTIZED and layout != GGUF:
        raise click.UsageError(f"--dtype {dtype} is a type of GGUF files; add --to gguf")
    if layout == GGUF and (max_shard_size != SHARD_SIZE or base or adapter):
        raise click.UsageError(
            "--to gguf writes one file of a whole model: no adapter, and without --max-shard-size and --base"
        )
    if adapter and max_shard_size != SHARD_SIZE:
        raise click.UsageError("--max-shard-size has no effect on an adapter, which is a single file")
    if base and not adapter:
        raise click.UsageError(f"--base has no effect: {folder} is not an adapter; leave it out")
    return adapter


def _model(
    folder: Path,
    target: Path | None,
    layout: str,
    dtype: str,
    shard_bytes: int,
    family: str,
    overwrite: bool,
    say: Messages,
) -> None:
    """Converts a model, or checks it if there is no target."""
    from llmctl.checkpoint import convert as conversion
    from llmctl.checkpoint.hf_config import read_config
    from llmctl.checkpoint.quantized import open_quantized, without_scheme

    config, scheme = without_scheme(folder, read_config(folder))
    where = str(folder / "config.json")
    plugin = plugins.resolve(family, config, where)
    dims = plugin.card.dims_from_config(config, where)
    names = {tensor.torch_name for tensor in plugin.card.expand(dims)}
    opened = conversion.open_source(
        folder, plugin, dims, None if scheme is None else open_quantized(folder, scheme, names)
    )
    if layout == GGUF and target is not None:
        _gguf(opened, target, dtype, overwrite, say)
        return
    if scheme is not None and dtype == "keep" and scheme.method != "bitsandbytes":
        dtype = "float32"  # what codes stand for
    facts: dict[str, Any] = {
        "family": plugin.card.name,
        "tensors": len(opened.state),
        "parameters": plugin.card.count(dims),
        "layout": opened.layout,
    }
    what = f"{len(opened.state)} tensors, {plugin.card.count(dims):,} parameters, layout {opened.layout}"
    if target is None:
        with Progress("reading the model", opened.folder.nbytes) as progress:
            not_finite = conversion.verify(opened, progress)
        if not_finite:
            click.echo(f"warning: values are not finite in {conversion.shown(not_finite)}", err=True)
        say.result(
            f"{folder} is a complete {plugin.card.name} model: {what}", model=folder, finite=not not_finite, **facts
        )
        return
    with Progress("writing the model", opened.folder.nbytes) as progress:
        made = conversion.convert(opened, target, layout, dtype, shard_bytes, overwrite, progress)
    done = "written" if made else "is already converted"
    say.result(f"{target} {done}: {what} -> {layout}", output=target, written=bool(made), to=layout, **facts)


def _gguf(source: Any, target: Path, dtype: str, overwrite: bool, say: Messages) -> None:
    """Writes a GGUF file; codes of a quantized checkpoint are kept where the type holds them."""
    from llmctl.checkpoint.gguf.write import write_model
    from llmctl.io.progress import waiting

    if target.suffix != f".{GGUF}" or target.is_dir():
        raise click.UsageError(f"TARGET {target} must be a file with the ending .{GGUF}")
    card = source.plugin.card
    with waiting("writing the model"):
        kind = write_model(target, source.folder.path, card, source.dims, source.state, dtype, overwrite=overwrite)
    size = target.stat().st_size
    say.result(
        f"{target} written: {card.name} as GGUF, weights {kind}, {size / 1e6:,.1f} MB",
        output=target, to=GGUF, family=card.name, weights=kind, bytes=size,
    )  # fmt: skip


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
