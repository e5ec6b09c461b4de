"""``llmctl quantize``: a model in 4 or 8 bits, compared with the float model before it is kept. Options override a configuration."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from llmctl.commands.completion import complete_recipe, complete_setting
from llmctl.commands.configured import recipe_family
from llmctl.commands.messages import Messages, messages, results
from llmctl.commands.model_option import model_option
from llmctl.commands.recipe import read_recipe, recipe_header
from llmctl.config import file, schema
from llmctl.config.quantize import BACKENDS, FORMATS, METHODS, QKV, QuantizeConfig
from llmctl.plugins import Families
from llmctl.report.wording import clock, size
from llmctl.runtime import process

KEYS = {
    "method": "quantize.method", "backend": "quantize.backend", "group": "quantize.group", "qkv": "quantize.qkv", "calibration": "calibration.file",
    "tokens": "calibration.tokens", "window": "calibration.window", "seed": "calibration.seed", "max_kl": "check.max_kl",
    "output": "output.dir", "layout": "output.format", "resume": "output.resume", "overwrite": "output.overwrite",
}  # fmt: skip
"""Option -> key of the configuration that it sets."""

REFUSED = 1
"""Exit code if the model is too far from the float one."""


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@model_option("The same as MODEL; or the family of the model.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="FILE",
              help="Configuration in YAML or JSON; options override its keys.")  # fmt: skip
@click.option("--recipe", shell_complete=complete_recipe, metavar="NAME", help="Recipe to run instead of a configuration: int4 or int8, or one of the family; options override its keys.")  # fmt: skip
@click.option("--method", type=click.Choice(METHODS), help="Method of quantization. [default: gptq]")
@click.option("--backend", type=click.Choice(BACKENDS), help="What computes gptq, awq and ptq-a8w8: llmctl, or PaddleSlim (extra slim). [default: llmctl]")  # fmt: skip
@click.option("--calibration", metavar="FILE", help="Plain text, examples of fine-tuning, or a corpus, like what the model will read.")  # fmt: skip
@click.option("--output", metavar="FOLDER", help="Folder to write.")
@click.option("--group", type=int, metavar="N", help="Inputs that share a scale, a multiple of 32; 0 = one scale for each output. [default: as suits the method]")  # fmt: skip
@click.option("--qkv", type=click.Choice(QKV), help="Bits of the projections of queries, keys and values; mixed = int4 queries, int8 keys and values. [default: those of the other linears]")  # fmt: skip
@click.option("--tokens", type=int, metavar="N", help="Tokens to calibrate on. [default: 32768]")
@click.option("--window", type=int, metavar="N", help="Tokens of a calibration window. [default: 256]")
@click.option("--seed", type=int, metavar="N", help="Random seed that chooses the windows. [default: 42]")
@click.option("--format", "layout", type=click.Choice(FORMATS), help="Layout of the folder: packed for the fused engine, or that of another tool. [default: packed]")  # fmt: skip
@click.option("--max-kl", type=float, metavar="NATS", help="Keep nothing if the mean KL divergence to the float model is above this. [default: 0.2]")  # fmt: skip
@click.option("--set", "assignments", multiple=True, metavar="a.b=c", shell_complete=complete_setting, help="Override a field; may be repeated.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Continue with the layers that an interrupted run has finished.")
@click.option("--overwrite", is_flag=True, help="Replace a folder that this command wrote.")
@click.option(
    "--print-config", is_flag=True, help="Print the complete configuration with a comment on every field, and exit."
)
@click.option("--check", is_flag=True, help="Check model, calibration and options, say what it will take, and exit.")
@results
@click.pass_context
def command(
    ctx: click.Context, /, model: Path | None, config_file: Path | None, recipe: str | None,
    assignments: tuple[str, ...], print_config: bool, check: bool, **given: Any,
) -> None:  # fmt: skip
    """Quantize the model in the folder MODEL to 4 or 8 bits.

    Text that was held out of --calibration is predicted by both models. FOLDER has quantization.html, a report.

    Exits with 1, and keeps nothing, if the quantized model is too far from the float one.
    """
    chosen = {
        name: value for name, value in given.items() if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    if config_file is not None and recipe is not None:
        raise click.UsageError("give --config or --recipe, not both")
    data, where, about = file.read_file(config_file) if config_file else {}, str(config_file or "llmctl quantize"), ""
    if recipe is not None:
        families = Families()
        family = recipe_family(ctx.obj, families, str(model or ctx.obj.text or ""))
        data, where = read_recipe(None if family == "auto" else families.load(family), recipe, "quantize")
        about = "\n".join([*recipe_header("quantize", families, family, recipe), ""])
    config = _config(data, where, assignments, chosen)
    if model is None and config.model.path and not ctx.obj.names_folder:
        model = Path(config.model.path)
    if print_config:
        config.model.path = str(model or (ctx.obj.text if ctx.obj.names_folder else config.model.path))
        config.model.family = config.model.family if ctx.obj.family == "auto" else ctx.obj.family
        click.echo(
            schema.to_yaml(
                config, about + ("Or, with this file: " if about else "Run with: ") + "llmctl quantize --config FILE"
            ),
            nl=False,
        )
        return
    ctx.obj.folder_or(model)
    config.model.path = str(model or ctx.obj.text)
    say = messages(ctx)
    process.limit_numpy()
    process.keep_memory()
    from llmctl.infer.quantize import job as quantizing

    job = quantizing.check(config, ctx.obj.family)
    costs = job.costs()
    say.note(f"{job.summary()}; about {clock(costs.seconds)} and {size(costs.memory)} of memory")
    if job.calibration and job.calibration.count < job.calibration.asked:
        say.note(f"{config.calibration.file} has only {job.calibration.count:,} of {job.calibration.asked:,} tokens")
    if config.output.format == "gptq" and config.quantize.asymmetric:
        say.note(
            "vLLM and SGLang refuse GPTQ folders with zero points; for them choose --format awq or compressed-tensors"
        )
    if config.output.format == "compressed-tensors" and config.quantize.qkv == "mixed":
        say.note(
            "vLLM and SGLang join queries, keys and values, and need one number of bits for them; for these choose --qkv int8"
        )
    if check:
        say.result(
            f"ok: {job.summary()}", event="check", ok=True, seconds=round(costs.seconds, 1), memory=costs.memory,
            tokens=job.calibration.count if job.calibration else 0,
        )  # fmt: skip
        return
    began = time.monotonic()
    try:
        outcome = quantizing.run(job)
    except KeyboardInterrupt:
        from llmctl.infer.quantize.journal import GO_ON

        click.echo(f"layers that are done are kept beside {config.output.dir}: {GO_ON}", err=True)
        raise
    ctx.exit(_say(outcome, config, say, time.monotonic() - began))


def _config(
    data: dict[str, Any], where: str, assignments: tuple[str, ...], chosen: Mapping[str, Any]
) -> QuantizeConfig:
    """A configuration with what options and ``--set`` say instead.

    Raises:
        ConfigError: A key is unknown or a value out of range.
    """
    settings = [f"{KEYS[name]}={json.dumps(value)}" for name, value in chosen.items()]
    return schema.build(QuantizeConfig, file.override(data, [*settings, *assignments]), where)


def _say(outcome: Any, config: QuantizeConfig, say: Messages, seconds: float) -> int:
    """Prints what came out; returns the exit code."""
    quality = outcome.report["quality"]
    target, method = config.output.dir, config.quantize.method
    if quality is None:
        beside = "not compared with the float model: no --calibration"
    else:
        more = 100 * (quality["quantized_perplexity"] / quality["perplexity"] - 1)
        beside = (
            f"KL {quality['kl']:.4f} to the float model, perplexity {quality['perplexity']:.4f} -> "
            f"{quality['quantized_perplexity']:.4f} ({more:+.2f} %), on {quality['tokens']:,} tokens held out"
        )
    values = {
        "output": target,
        "method": method,
        "format": config.output.format,
        "quality": quality,
        "seconds": round(seconds, 1),
    }
    if not outcome.kept:
        limit = config.check.max_kl
        if say.json:
            say.result("", kept=False, **values)
        click.echo(
            f"{beside}; that is above {limit:g}, so {target} was not written. Use more tokens, a smaller --group, or --qkv mixed; or keep "
            "it with a higher --max-kl",
            err=True,
        )
        return REFUSED
    say.result(
        f"{beside}\n{target} written: {method}, {config.output.format}, {outcome.bytes / 1e6:,.1f} MB, in {clock(seconds)}",
        kept=True, bytes=outcome.bytes, **values,
    )  # fmt: skip
    return 0
