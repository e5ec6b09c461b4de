"""``llmctl merge``: merges an adapter into its base model."""

from __future__ import annotations

from pathlib import Path

import click

from llmctl.commands.messages import messages, results
from llmctl.commands.model_option import model_option
from llmctl.errors import ConfigError
from llmctl.io.progress import Progress, waiting
from llmctl.io.sizes import parse_bytes
from llmctl.io.target import check_target, has_folders


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@model_option("Base model of the adapter, or its family.")
@click.option(
    "--output",
    required=True,
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Folder to write the merged model to.",
)
@click.option(
    "--base",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Folder of the base model, if it has moved; the same as --model FOLDER.",
)
@click.option("--dtype", type=click.Choice(["keep", "float32", "float16", "bfloat16"]), default="keep",
              show_default=True, help="Data type of the weights; keep = that of the base model.")  # fmt: skip
@click.option(
    "--max-shard-size",
    metavar="SIZE",
    default="5GB",
    show_default=True,
    help="Maximum size of a weight file, e.g. 500MB.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing model in the folder.")
@click.option("--verify", "check", is_flag=True, help="Compare the logits of the merged model with base + adapter.")
@click.option("--allow-other-base", is_flag=True, help="Allow a base model that the adapter was not trained on.")
@results
@click.pass_context
def command(
    ctx: click.Context,
    adapter: Path,
    output: Path,
    base: Path | None,
    dtype: str,
    max_shard_size: str,
    overwrite: bool,
    check: bool,
    allow_other_base: bool,
) -> None:
    """Merge the adapter in the folder ADAPTER into its base model."""
    shard_bytes = parse_bytes(max_shard_size, "--max-shard-size ")
    say = messages(ctx)
    check_target(output, overwrite, f"--output {output}", "a model", _is_model)
    from llmctl.adapters.folder import open_adapter
    from llmctl.adapters.merge import merge
    from llmctl.checkpoint.locate import locate

    adapter = locate(adapter)
    given = ctx.obj.folder_or(base, "--base") if base or ctx.obj.names_folder else None
    opened = open_adapter(adapter, given, ctx.obj.family, allow_other_base)
    for part in (opened.base, adapter):
        if output.resolve() == part.resolve():
            raise ConfigError(f"--output {output} is the adapter or its base; choose another folder")
    total = opened.plugin.card.count(opened.dims) * (2 if dtype in ("float16", "bfloat16") else 4)
    with Progress("writing the model", total) as progress:
        changed = merge(opened, output, dtype, shard_bytes, progress, overwrite)
    family = opened.plugin.card.name
    say.result(
        f"{output} written: {family} from {opened.base}, {changed} layers changed by {adapter}"
        + (f", which also has its own {', '.join(opened.own)}" if opened.own else ""),
        output=output, family=family, base=opened.base, adapter=adapter, layers_changed=changed,
    )  # fmt: skip
    if opened.quantized:
        say.note(
            f"the base was quantized to {opened.quantized} in training; the merged model has its dequantized weights"
        )
    if opened.scheme is not None:
        say.note(
            f"the base has {opened.scheme}; the merged model has its dequantized weights with the adapter, as floats. Quantize it "
            f"anew with llmctl quantize, or run both without rounding again: llmctl generate {opened.base} --adapter {adapter}"
        )
    if check:
        from llmctl import runtime

        with waiting("importing paddle"):
            runtime.import_paddle("llmctl merge --verify")
            from llmctl.adapters.verify import verify

        with waiting("comparing the merged model with base and adapter"):
            difference, allowed = verify(opened, output)
        say.result(
            f"verified: the relative difference of the logits is {difference:.2g}; {allowed:g} is allowed",
            "verify", difference=difference, allowed=allowed,
        )  # fmt: skip


def _is_model(folder: Path) -> bool:
    """Whether a folder holds a model, and nothing else."""
    return (folder / "config.json").is_file() and not has_folders(folder)
