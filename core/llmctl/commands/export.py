"""``llmctl export``: a model as a program, compared with its layer before it is kept, or packed for the fused engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from llmctl.commands.engine_options import GROUP_HELP, adapter_options, options_of
from llmctl.commands.messages import Messages, messages, results
from llmctl.commands.model_option import model_option
from llmctl.commands.renamed import Renamed
from llmctl.errors import ConfigError
from llmctl.infer.model_source import ModelSource, open_model
from llmctl.infer.options import WEIGHTS, EngineOptions
from llmctl.io.progress import waiting
from llmctl.io.target import check_target, has_folders

FLOATS = "float32"
"""Value of ``--weights`` for a static program without the codes of a quantized checkpoint."""

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "1, 2, 3",
    "What is left of a long text after its first half has been read, and what of a short one?",
)
"""What program and layer are asked before a program is kept."""


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@model_option("The same as MODEL; or the family of the model.")
@click.option("--engine", type=click.Choice(["static", "fused"]), default="static", show_default=True,
              help="static: a paddle inference program; fused: packed weights for the fused engine.")  # fmt: skip
@click.option("--output", "target", cls=Renamed, former=["--out"], required=True, metavar="FOLDER", type=click.Path(path_type=Path),
              help="Folder to write.")  # fmt: skip
@click.option("--weights", type=click.Choice(WEIGHTS),
              help="Data type of the weights (fused; static: float32 for a quantized model). [default: as in the checkpoint]")  # fmt: skip
@click.option("--group", type=int, metavar="N", help=GROUP_HELP)
@click.option("--overwrite", is_flag=True, help="Replace an existing export.")
@adapter_options
@results
@click.pass_context
def command(ctx: click.Context, /, model: Path | None, target: Path, overwrite: bool, **given: Any) -> None:
    """Export the model in the folder MODEL, or an adapter merged into its base, for llmctl generate."""
    folder, say = ctx.obj.folder_or(model), messages(ctx)
    options = options_of(given)
    _check_not_exported(folder, options.engine)
    source = open_model(folder, ctx.obj.family, options)
    floats = options.engine == "static" and source.scheme is not None and options.weights == FLOATS
    if options.engine == "static":
        (replace(options, weights=None) if floats else options).refuse_fused_only("static")
    for part in filter(None, (source.folder, folder, options.single_adapter)):
        if target.resolve() == part.resolve():
            raise ConfigError(f"--output {target} is the model itself; choose another folder")
    check_target(target, overwrite, f"--output {target}", "an exported model", _is_export)
    if options.engine == "fused":
        _check_merges(source)
    from llmctl import tokenizers

    tokenizer = tokenizers.load(source.tokenizer_folder, card=source.plugin.card)
    tokenizers.check_fits(tokenizer, source.dims.vocab, source.tokenizer_folder)
    if options.engine == "fused":
        _packed(source, target, options, overwrite, say)
    else:
        _program(source, not floats, tokenizer, target, overwrite, say)


def _is_export(folder: Path) -> bool:
    """Whether a folder holds what this command writes, and nothing else."""
    from llmctl.infer.eager.exported import is_exported
    from llmctl.infer.packed.folder import is_packed

    return (is_exported(folder) or is_packed(folder)) and not has_folders(folder)


def _check_not_exported(model: Path, engine: str) -> None:
    from llmctl.infer.eager.exported import is_exported
    from llmctl.infer.packed.folder import is_packed

    if is_packed(model) and engine == "static":
        raise ConfigError(
            f"{model} is packed for the fused engine, and a static program is made of a model in Hugging Face's layout; quantize "
            "with --format gptq, awq or compressed-tensors, whose codes it keeps"
        )
    if is_exported(model) or is_packed(model):
        raise ConfigError(f"{model} is what llmctl export or quantize made; name the model that it was made from")


def _program(source: ModelSource, codes: bool, tokenizer: Any, target: Path, overwrite: bool, say: Messages) -> None:
    from llmctl import runtime
    from llmctl.data.sft.encoding import prompt_ids
    from llmctl.tokenizers.conversation import Conversation

    prompts = [prompt_ids(tokenizer, Conversation(((text, None),), None)) for text in TEXTS]
    with waiting("importing paddle"):
        runtime.import_paddle("llmctl export")
        from llmctl.infer.eager.export import TOLERANCE, export

    layer = source.layer(merged=True, codes=codes)
    with waiting("tracing the program and comparing it with the model"):
        changes = source.adapted.config_changes if source.adapted else {}
        about = export(layer, source.plugin, source.dims, prompts, target, source.folder, tokenizer, overwrite, changes)
    limit = f", up to {about.max_positions} tokens" if about.max_positions else ""
    say.result(
        f"compared on {len(prompts)} prompts: logits differ by {about.difference:.2g} of the largest at most; {TOLERANCE:g} is "
        f"allowed\n{target} written: a static program of {about.family}{limit}",
        output=target, engine="static", family=about.family, max_positions=about.max_positions, difference=about.difference,
    )  # fmt: skip


def _check_merges(source: ModelSource) -> None:
    """A packed folder has no place for an adapter of every prompt that is not merged."""
    from llmctl.adapters.adapter import Adapter

    scheme, adapted = source.scheme, source.adapted
    if scheme is None or adapted is None or not isinstance(adapted.adapter, Adapter):
        return
    if not (scheme.floats and adapted.quantized):
        raise ConfigError(
            f"{source.folder} has {scheme}, into which an adapter is not merged; export the folder alone, and give its packed "
            "folder the adapter: llmctl generate PACKED --adapter FOLDER; or merge them into a float model with llmctl merge"
        )


def _packed(source: ModelSource, target: Path, options: EngineOptions, overwrite: bool, say: Messages) -> None:
    from llmctl.infer.loader import Packing, packed_model
    from llmctl.infer.packed.folder import WEIGHTS, save_packed

    packing = Packing(kind=options.weights or "", group=options.group)
    model = packed_model(source.folder, source.plugin, source.dims, packing, source.adapted, scheme=source.scheme)
    save_packed(model, target, source.folder, source.plugin, overwrite, source.adapted)
    size = (target / WEIGHTS).stat().st_size
    family, kind = source.plugin.card.name, model.layers[0].qkv.weight.kind
    say.result(
        f"{target} written: {family} packed as {kind}, {size / 1e6:,.1f} MB",
        output=target, engine="fused", family=family, weights=kind, bytes=size,
    )  # fmt: skip
