"""Quantizing a model from beginning to end: what is checked before, the layers one by one, the comparison, the folder."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.card.support import require
from llmctl.checkpoint.locate import locate
from llmctl.config.quantize import QuantizeConfig
from llmctl.errors import ConfigError, DataError, UnsupportedError
from llmctl.infer.model_source import ModelSource, open_model
from llmctl.infer.options import EngineOptions
from llmctl.infer.quantize.calibration import Calibration, read_calibration
from llmctl.infer.quantize.costs import Costs, estimate
from llmctl.infer.quantize.settings import PADDLESLIM, Settings, settings_of
from llmctl.io.progress import Progress
from llmctl.io.target import check_target, has_folders

if TYPE_CHECKING:
    from llmctl.card.decoder_spec import DecoderSpec
    from llmctl.infer.packed.model import PackedModel
    from llmctl.infer.packed.pack import Weights
    from llmctl.infer.quantize.quantizer import QuantizedLayer

WIDER = {"mixed": "keys and values", "int8": "queries, keys and values"}
"""Value of ``quantize.qkv`` -> what has more bits than the other linears."""

REPORT, PAGE = "quantization.json", "quantization.html"


@dataclass(frozen=True)
class QuantizeJob:
    """A configuration that passed every check.

    Attributes:
        config: The configuration.
        settings: What it comes down to.
        source: The model.
        graph: What the fused engine computes for it.
        calibration: What it is calibrated on; None = nothing.
        output: The folder to write.
    """

    config: QuantizeConfig
    settings: Settings
    source: ModelSource
    graph: DecoderSpec
    calibration: Calibration | None
    output: Path

    def costs(self) -> Costs:
        """What it will take."""
        return estimate(self.graph, self.settings, list(map(len, self.calibration.windows)) if self.calibration else [])

    def summary(self) -> str:
        """One line on what would be done."""
        settings, calibration = self.settings, self.calibration
        how = f"groups of {settings.group}" if settings.group else "a scale for each output"
        more = "" if settings.kv_bits == settings.bits else f"{WIDER[settings.qkv]} to int{settings.kv_bits}, "
        shown = f"{settings.method}: {len(self.graph.layers)} layers to int{settings.bits}, {more}{how}"
        if calibration is None:
            return f"{shown}, without calibration"
        return f"{shown}, {calibration.count:,} tokens in {len(calibration.windows)} windows of {calibration.kind}"


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        report: Content of ``quantization.json``.
        kept: Whether the folder was written.
        bytes: Size of its weights.
    """

    report: Mapping[str, Any]
    kept: bool
    bytes: int = 0


def check(config: QuantizeConfig, family: str = "auto") -> QuantizeJob:
    """Checks a configuration; nothing is computed or written.

    Args:
        config: The configuration.
        family: The family, unless the configuration names one.

    Raises:
        LlmctlError: The model, the calibration or an option is not what it should be.
    """
    from llmctl import tokenizers
    from llmctl.infer.packed.pack import graph_of

    settings = settings_of(config)
    if settings.backend == PADDLESLIM:
        from llmctl.quant.methods import paddleslim

        paddleslim.check()
    folder = locate(config.model.path)
    _check_model(folder)
    source = open_model(folder, config.model.family if family == "auto" else family, EngineOptions())
    if source.scheme is not None and not source.scheme.floats:
        raise ConfigError(
            f"{config.model.path} is quantized already ({source.scheme}); give the float model that it was made from"
        )
    if source.adapted is not None:
        raise ConfigError(
            f"{folder} is an adapter; merge it first, and quantize the result: llmctl merge {folder} --output FOLDER"
        )
    require(source.plugin.card, "quantize")
    graph = graph_of(source.plugin, source.dims)
    _check_hook(source, settings)
    output = _check_output(config, source)
    if config.output.format != "packed":
        from llmctl.infer.quantize import layouts

        layouts.check(config.output.format, source, graph, settings)
    tokenizer = tokenizers.load(source.tokenizer_folder, config.calibration.chat_template, source.plugin.card)
    tokenizers.check_fits(tokenizer, source.dims.vocab, source.tokenizer_folder)
    calibration = None
    if config.calibration.file:
        from llmctl.card.rope import context_length

        positions = context_length(source.dims)
        causal = graph.prefix_lm is None
        calibration = read_calibration(config.calibration, tokenizer, source.dims.vocab, positions, causal)
    elif settings.observes:
        raise ConfigError(
            f"quantize.method={settings.method} looks at what the model reads: give a text, examples or a corpus with "
            "--calibration FILE"
        )
    return QuantizeJob(config, settings, source, graph, calibration, output)


def run(job: QuantizeJob) -> Outcome:
    """Quantizes the model, and writes the folder if the model is near enough to the float one.

    Raises:
        LlmctlError: Weights or inputs are not finite, or the folder cannot be written.
    """
    from llmctl.infer.packed.pack import RoundToNearest, pack, state_of
    from llmctl.infer.quantize.journal import open_journal

    stored = job.source.state()
    state, digest = state_of(stored, job.graph), _read_through(stored)
    empty = replace(job.graph, layers=())
    exact = RoundToNearest(state, "float32")
    outer = pack(empty, RoundToNearest(state, f"int{job.settings.bits}"))
    with open_journal(job.output, _identity(job, digest), job.config.output.resume) as journal:
        done = _layers(job, exact, pack(empty, exact), outer, journal)
        model = replace(
            outer, graph=job.graph, layers=tuple(one.layer for one in done.layers), folds=_folds(done.layers)
        )
        report = _report(job, done, model)
        measured = report["quality"]
        if measured is not None and not measured["kl"] <= job.config.check.max_kl:
            return Outcome(report, False)
        return Outcome(report, True, _write(job, model, report))


def _read_through(state: Mapping[str, Any]) -> str:
    """SHA-256 of all weights, which are read once before the long work.

    Raises:
        DataError: A value is not finite.
    """
    import numpy as np

    from llmctl.checkpoint.formats.dtypes import finite

    digest = hashlib.sha256()
    with Progress("reading the weights", len(state)) as progress:
        for name, stored in state.items():
            values = np.ascontiguousarray(stored.numpy())
            odd = ~finite(values, stored.dtype)
            if odd.any():
                place = [int(index) for index in np.argwhere(odd)[0]]
                raise DataError(
                    f"{name} cannot be quantized: {int(odd.sum()):,} of its {odd.size:,} values are not finite, the first at {place}; "
                    "training may have diverged: take an earlier checkpoint"
                )
            digest.update(f"{name}\0{stored.dtype}\0{values.shape}\0".encode())
            digest.update(values.data)
            progress(1)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Done:
    layers: list[QuantizedLayer]
    quality: dict[str, Any] | None


def _layers(job: QuantizeJob, weights: Weights, exact: PackedModel, outer: PackedModel, journal: Any) -> _Done:
    """All layers, and how far the quantized model is from the float one."""
    from llmctl.infer.packed.pack import pack_layer
    from llmctl.infer.quantize.block import block_of
    from llmctl.infer.quantize.quality import compare
    from llmctl.infer.quantize.quantizer import quantize_layer, quantize_unseen, replay_layer
    from llmctl.infer.quantize.streams import Streams

    streams = Streams(job.graph, job.calibration.tokens()) if job.calibration else None
    if streams:
        streams.embed(exact, outer)
    layers = []
    with Progress("quantizing", len(job.graph.layers)) as progress:
        for index in range(len(job.graph.layers)):
            done = journal.get(index)
            if done is None or streams:
                block = block_of(pack_layer(job.graph, index, weights))
            if done is not None and streams:
                replay_layer(streams, index, block, done)
            if done is None:
                done = quantize_layer(streams, index, block, job.settings) if streams else quantize_unseen(
                    job.graph, index, block, job.settings
                )  # fmt: skip
                journal.put(index, done)
            layers.append(done)
            progress(1)
    if streams is None:
        return _Done(layers, None)
    before, after = compare(streams, exact, outer)
    for which, measures in (("float", before), ("quantized", after)):
        if not math.isfinite(measures.loss):
            raise DataError(
                f"predictions of the {which} model are not finite on the text that was held out, so nothing was written; look at what "
                f"the {which} model computes"
            )
    if before.perplexity > job.graph.vocab:
        warnings.warn(
            f"{job.config.calibration.file}: the float model itself predicts it worse than by chance, with a perplexity of "
            f"{before.perplexity:,.0f} for {job.graph.vocab:,} tokens; it may be of another language, tokenizer or chat template than "
            "the model's",
            UserWarning,
            stacklevel=2,
        )
    return _Done(layers, {
        "tokens": after.tokens, "perplexity": before.perplexity, "quantized_perplexity": after.perplexity,
        "kl": after.divergence, "same_top": after.agreement,
    })  # fmt: skip


def _folds(layers: list[QuantizedLayer]) -> tuple[Any, ...]:
    from llmctl.infer.packed.model import StageFold

    return tuple(
        StageFold(index, stage, expert, fold.scale_I, fold.offset_I)
        for index, one in enumerate(layers)
        for stage, expert, fold, as_factors in one.folds
        if not as_factors
    )


def _write(job: QuantizeJob, model: PackedModel, report: Mapping[str, Any]) -> int:
    from llmctl.infer.packed.folder import WEIGHTS, save_packed
    from llmctl.report.quantization import page

    files = {REPORT: json.dumps(report, indent=1) + "\n", PAGE: page(report)}
    overwrite = job.config.output.overwrite
    if job.config.output.format == "packed":
        save_packed(model, job.output, job.source.folder, job.source.plugin, overwrite, files=files)
        return (job.output / WEIGHTS).stat().st_size
    from llmctl.infer.quantize import layouts

    return layouts.write(job.config.output.format, job.output, job.source, model, job.settings, files, overwrite)


def _report(job: QuantizeJob, done: _Done, model: PackedModel) -> dict[str, Any]:
    from llmctl.config import schema
    from llmctl.infer.packed.linear import bits_of

    calibration = job.calibration
    configuration = schema.to_dict(job.config)
    # What does not change the result is left out, so that a run that was resumed gives the same bytes.
    for key in ("dir", "overwrite", "resume"):
        del configuration["output"][key]
    rows = [row for one in done.layers for row in one.rows]
    return {
        "version": 1,
        "family": job.source.plugin.card.name,
        "model": Path(os.path.abspath(job.config.model.path)).name,
        "summary": job.summary(),
        "configuration": configuration,
        "calibration": calibration and {
            "kind": calibration.kind, "windows": len(calibration.windows), "tokens": calibration.count,
            "asked": calibration.asked,
        },
        "bits": round(bits_of(linear.weight for layer in model.layers for linear in layer.linears), 4),
        "quality": done.quality,
        "linears": [row for row in rows if "how" in row],
        "stages": [row for row in rows if "scales" in row],
    }  # fmt: skip


def _identity(job: QuantizeJob, weights: str) -> dict[str, Any]:
    """What makes the layers of two runs equal, with a digest of the weights."""
    from llmctl.config import schema

    config = schema.to_dict(job.config)
    windows = job.calibration.windows if job.calibration else []
    return {
        "quantize": config["quantize"],
        "packed": config["output"]["format"] == "packed",
        "windows": hashlib.sha256(json.dumps([list(map(int, ids)) for ids in windows]).encode()).hexdigest(),
        "weights": weights,
        "card": job.source.plugin.card.hash(),
    }


def _check_model(folder: Path) -> None:
    from llmctl.infer.eager.exported import is_exported
    from llmctl.infer.packed.folder import is_packed

    if is_exported(folder) or is_packed(folder):
        raise ConfigError(
            f"{folder} is what llmctl export or quantize made; give the float model that it was made from"
        )


def _check_hook(source: ModelSource, settings: Settings) -> None:
    """The plugin names the linears that may be quantized; the fused engine quantizes all of a layer's."""
    card = source.plugin.card
    wanted = {
        target.name for target in source.plugin.hooks.quant_layers(card=card, dims=source.dims, method=settings.method)
    }
    linears = {
        tensor.name for tensor in card.expand(source.dims) if tensor.kind == "linear" and tensor.layer is not None
    }
    if left := sorted(linears - wanted):
        raise UnsupportedError(
            f"{card.name} does not quantize {left[0]}{' and others' if left[1:] else ''} with {settings.method}; choose another method"
        )


def _check_output(config: QuantizeConfig, source: ModelSource) -> Path:
    from llmctl.io.atomic import check_writable

    if not config.output.dir:
        raise ConfigError("output.dir is missing; name the folder to write: --output FOLDER")
    output = Path(config.output.dir)
    if output.resolve() == source.folder.resolve():
        raise ConfigError(f"output.dir={output} is the model itself; choose another folder")
    check_target(output, config.output.overwrite, f"output.dir={output}", "a quantized model", _is_quantized)
    if output.is_dir():
        _check_read(output, config, source)
    check_writable(output)
    return output


def _is_quantized(folder: Path) -> bool:
    """Whether a folder holds what this command writes, and nothing else."""
    return (folder / REPORT).is_file() and not has_folders(folder)


def _check_read(output: Path, config: QuantizeConfig, source: ModelSource) -> None:
    """A folder that is replaced must not hold what is read."""
    read = {"the calibration text": config.calibration.file, "the model": str(source.folder)}
    for what, path in read.items():
        if path and output.resolve() in Path(path).resolve().parents:
            raise ConfigError(
                f"output.dir={output} holds {what}, {path}, and --overwrite would delete it; choose another folder"
            )
