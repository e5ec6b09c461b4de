"""Checks that fine-tuning and preference optimization share: model, method, tokenizer, examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from llmctl import tokenizers
from llmctl.adapters.folder import is_adapter
from llmctl.card import support
from llmctl.card.dims import Dims
from llmctl.checkpoint.build import CheckedModel, open_model
from llmctl.checkpoint.hf_config import NAME as CONFIG
from llmctl.checkpoint.hf_config import read_config
from llmctl.checkpoint.quantized import without_scheme
from llmctl.config import common, parallel
from llmctl.errors import ConfigError
from llmctl.infer.eager.exported import is_exported
from llmctl.infer.packed.folder import is_packed
from llmctl.jobs import added_tokens, degrees, lengths, loggers, precision, quantized_base
from llmctl.jobs.paths import find_model_folder, output_folder, template_of
from llmctl.plugins import Families, Plugin
from llmctl.tokenizers import Tokenizer

C = TypeVar("C", bound=Any)


def find_model(
    config: C, family: str, task: str, families: Families, weights: bool = True
) -> tuple[C, CheckedModel, Tokenizer, Path]:
    """The configuration with lengths that fit, and the model, tokenizer and output folder of a job on examples, checked.

    Args:
        config: The configuration.
        family: Name of a family or ``"auto"``.
        task: What the family must support, besides the training method.
        families: The installed families.
        weights: As for ``job.Check``.

    Raises:
        LlmctlError: The first check that fails; nothing has been written.
    """
    named = families.load(family) if family != "auto" else None
    folder = find_model_folder(config.model.path, "model.path", named, config.model.revision, weights)
    if is_packed(folder) or is_exported(folder):
        raise ConfigError(
            f"model.path={folder} is packed for inference, with other tensors than the model's and scales in its layers; give the "
            "model that it was made from, or quantize to codes that can be trained over: --format gptq, awq or compressed-tensors"
        )
    if is_adapter(folder):
        raise ConfigError(
            f"model.path={folder} holds an adapter; make a model of it with llmctl merge, or name its base"
        )
    raw, where = read_config(folder), str(folder / CONFIG)
    plugin = families.resolve(family, raw, where)
    support.require(plugin.card, task)
    raw, scheme = without_scheme(folder, raw)
    quantized_base.check(scheme, config.method, any(added_tokens.wanted(config)), folder)
    raw = plugin.card.without_keys(raw, config.model.ignore_config_keys, where)
    dims = plugin.card.dims_from_config(raw, where)
    _check_method(config.method, plugin, dims)
    degrees.check(config.parallel, config.method, plugin.card, dims)
    if config.method.name != "full" and config.output.max_shard_bytes != common.OutputConfig().max_shard_bytes:
        raise ConfigError(
            f"output.max_shard_bytes has no effect with method.name={config.method.name}: an adapter is one file; "
            "leave it out"
        )
    config = lengths.fitted(config, dims, folder)
    if weights:
        model = open_model(folder, plugin, dims, raw, scheme)
    else:
        model = CheckedModel(plugin, dims, raw, home=folder, scheme=scheme)
    output = output_folder(config.output, {"model.path": folder})
    tokenizer = _tokenizer(config, plugin, folder, dims)
    added_tokens.check(config, model, tokenizer)
    return config, model, tokenizer, output


def _check_method(method: common.MethodConfig, plugin: Plugin, dims: Dims) -> None:
    """Checks that the family supports the training method, and ``method.targets`` match layers."""
    if method.name == "prefix":
        support.require(plugin.card, "prefix-tuning")
        if method.projection_hidden and not method.prefix_projection:
            raise ConfigError("method.projection_hidden has no effect without method.prefix_projection=true; set both")
    if method.name != "lora":
        return
    from llmctl.adapters import targets

    support.require(plugin.card, "lora")
    chosen = set(targets.choose(plugin.card, dims, method.targets))
    targets.check_rank(plugin.card, dims, chosen, method.rank, method.pissa)
    targets.modules_to_save(plugin, dims, method.modules_to_save)
    if method.dora:
        for torch, paths in targets.torch_modules(plugin, dims).items():
            absent = [path for path in paths if path not in chosen]
            if absent and len(absent) < len(paths):
                raise ConfigError(
                    f"method.dora: checkpoints store {', '.join(paths)} as one layer {torch}, and magnitudes are of "
                    f"its whole columns; add {', '.join(path.rpartition('.')[2] for path in absent)} to method.targets"
                )


def check_common(config: Any) -> None:
    """Checks that the sections of all jobs on examples do not conflict.

    Args:
        config: The configuration.

    Raises:
        ConfigError: Keys conflict, have no effect or are missing.
    """
    common.check_method(config.method)
    if config.method.pissa and config.method.base != "float":
        raise ConfigError(
            f"method.pissa subtracts its initial adapter from the base, and method.base={config.method.base} then quantizes the "
            "difference: an adapter of the original base cannot express the result; use one of the two"
        )
    for section, key in (("model", "path"), ("data", "train"), ("output", "dir")):
        if not getattr(getattr(config, section), key):
            raise ConfigError(
                f"{section}.{key} is not set; set it in the configuration or with --set {section}.{key}=..."
            )
    data, output = config.data, config.output
    if data.weights and len(data.weights) != len(data.train):
        raise ConfigError(
            f"data.weights has {len(data.weights)} numbers for the {len(data.train)} entries of data.train; give one for each"
        )
    if data.dev and data.dev_size:
        raise ConfigError("data.dev and data.dev_size exclude each other; leave out one")
    if data.dev_size > 1 and data.dev_size != int(data.dev_size):
        raise ConfigError(f"data.dev_size={data.dev_size} is neither a share below 1 nor a whole number of examples")
    if data.packed_length and data.packing == "none":
        raise ConfigError("data.packed_length has no effect with data.packing=none; choose first-come or best-fit")
    if data.index_cache and not data.streaming:
        raise ConfigError("data.index_cache has no effect without data.streaming=true; leave it out")
    common.check_updates(config.train)
    parallel.check(config.parallel, config.train)
    precision.check(config.model.dtype, config.train)
    precision.of(config.model.dtype, config.train)
    loggers.check(config.train)
    if output.resume and output.overwrite:
        raise ConfigError("output.resume and output.overwrite exclude each other; set one")


def _tokenizer(config: Any, plugin: Plugin, model: Path, dims: Dims) -> Tokenizer:
    tokenizer = tokenizers.load(model, template_of(config.data.chat_template, plugin), plugin.card)
    tokenizers.check_fits(tokenizer, dims.vocab, model)
    return tokenizer
