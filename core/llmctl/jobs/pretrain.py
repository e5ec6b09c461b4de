"""Checks of a pretraining job."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from llmctl import tokenizers
from llmctl.card import support
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.card.rope import context_length
from llmctl.checkpoint.build import CheckedModel, open_model
from llmctl.checkpoint.hf_config import NAME, normalize, read_config
from llmctl.config import common, parallel
from llmctl.config import pretrain as config_pretrain
from llmctl.config.file import override
from llmctl.config.pretrain import PretrainConfig, PretrainModelConfig
from llmctl.config.schema import changed_fields
from llmctl.errors import ConfigError, DataError
from llmctl.io.json_object import read_json
from llmctl.jobs import degrees, loggers, precision
from llmctl.jobs.job import CheckedJob
from llmctl.jobs.paths import find_model_folder, output_folder
from llmctl.plugins import Families, Plugin

SCANNED = 256 << 20
"""Bytes of a corpus whose ids are compared with the vocabulary."""


@dataclass(frozen=True)
class PretrainJob(CheckedJob[PretrainConfig]):
    """A checked pretraining job, of a checkpoint or of a new model."""

    command: ClassVar[str] = "pretrain"

    def summary(self) -> str:
        """One line on what would run."""
        train, data, card = self.config.train, self.config.data, self.model.plugin.card
        origin = f"from {self.model.folder}" if self.model.folder else "from scratch"
        tokens = train.max_steps * train.batch_size * train.grad_accumulation * data.seq_length
        return (
            f"{card.name} with {card.count(self.model.dims):,} parameters {origin}, "
            f"{train.max_steps:,} steps on {tokens:,} tokens of {', '.join(data.corpora)}, output in {self.output}"
        )


def check(
    config: PretrainConfig, family: str = "auto", families: Families | None = None, weights: bool = True
) -> PretrainJob:
    """The job of a configuration; see ``job.Check``."""
    _combinations(config)
    families = families or Families()
    named = families.load(family) if family != "auto" else None
    given = {f"model.{key}": getattr(config.model, key) for key in ("path", "tokenizer", "config")}
    paths = {
        key: find_model_folder(text, key, named, config.model.revision if key == "model.path" else "", weights and key == "model.path")
        for key, text in given.items() if text
    }  # fmt: skip
    folder = paths.get("model.path")
    home = paths.get("model.tokenizer", folder)
    assert home is not None
    if folder:
        raw, where = read_config(folder), str(folder / NAME)
        plugin = families.resolve(family, raw, where)
        card = plugin.card if home == folder else _card_of_tokenizer(home, named, families)
        tokenizer = tokenizers.load(home, card=card)
    else:
        tokenizer = tokenizers.load(home, card=_card_of_tokenizer(home, named, families))
        plugin, raw, where = _new_model(config.model, paths.get("model.config"), family, families, tokenizer.vocab_size)
    support.require(plugin.card, "pretrain")
    raw = plugin.card.without_keys(raw, config.model.ignore_config_keys, where)
    dims = plugin.card.dims_from_config(raw, where)
    tokenizers.check_fits(tokenizer, dims.vocab, folder or home)
    degrees.check(config.parallel, None, plugin.card, dims)
    model = (
        open_model(folder, plugin, dims, raw) if folder and weights else CheckedModel(plugin, dims, raw, home=folder)
    )
    limit = context_length(dims)
    if limit and config.data.seq_length > limit:
        raise ConfigError(
            f"data.seq_length={config.data.seq_length} exceeds the {limit} positions of the model ({where}); lower it, "
            "or give a new model more positions with model.changes"
        )
    if config.parallel.sequence and config.data.seq_length % config.parallel.tensor:
        raise ConfigError(
            f"parallel.sequence divides data.seq_length={config.data.seq_length} among parallel.tensor={config.parallel.tensor} devices, "
            "which must divide it; change one of them, or leave out parallel.sequence"
        )
    output = output_folder(config.output, paths)
    config = _with_split(config)
    _corpora(config, dims.vocab)
    return PretrainJob(config, model, tokenizer, output)


def _card_of_tokenizer(home: Path, named: Plugin | None, families: Families) -> Family | None:
    """The card of the tokenizer's family, which may be another than the model's."""
    config = read_json(home / NAME)
    if named and isinstance(config.get("architectures"), list) and named.card.claims_config(config):
        return named.card
    return families.card_of(home) or (named.card if named else None)


def padded_vocab(ids: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``ids``."""
    return -(-ids // multiple) * multiple


def _combinations(config: PretrainConfig) -> None:
    model, train, output = config.model, config.train, config.output
    given = [f"model.{name}" for name in ("path", "size", "config") if getattr(model, name)]
    if len(given) != 1:
        what = f"{' and '.join(given)} exclude each other" if given else "no model is set"
        raise ConfigError(
            f"{what}; set model.path to continue training a checkpoint, or model.size or model.config for a new model"
        )
    if model.revision and not model.path:
        raise ConfigError("model.revision has no effect without model.path; leave it out")
    idle = [key for key in ("changes", "vocab_multiple") if key in changed_fields(model)]
    if model.path and idle:
        raise ConfigError(
            f"model.{idle[0]} has no effect with model.path: a checkpoint has its own config.json; leave it out"
        )
    if not model.path and not model.tokenizer:
        raise ConfigError("model.tokenizer is not set; a new model needs the tokenizer of its corpora")
    for part, key in (("data", "corpora"), ("output", "dir")):
        if not getattr(getattr(config, part), key):
            raise ConfigError(f"{part}.{key} is not set; set it in the configuration or with --set {part}.{key}=...")
    if train.min_learning_rate > train.learning_rate:
        raise ConfigError(
            f"train.min_learning_rate={train.min_learning_rate} is above train.learning_rate={train.learning_rate}; lower it"
        )
    common.check_updates(train)
    parallel.check(config.parallel, train)
    precision.check(config.model.dtype, train)
    precision.of(config.model.dtype, train)
    loggers.check(train)
    if output.resume and output.overwrite:
        raise ConfigError("output.resume and output.overwrite exclude each other; set one")


def _with_split(config: PretrainConfig) -> PretrainConfig:
    """The configuration with the weights of the splits; warns where a default is left out."""
    from llmctl.data.corpus.samples import with_split

    made = replace(config, data=with_split(config.data))
    absent = [name for name, count in config.samples().items() if count and not made.samples()[name]]
    if absent:
        warnings.warn(
            f"a corpus has too few documents for {' and '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} left out; "
            "data.split sets the weights of train, valid and test",
            UserWarning,
            stacklevel=2,
        )
    _check_measured(made)
    return made


def _check_measured(config: PretrainConfig) -> None:
    """Checks that what needs evaluations has them."""
    train = config.train
    unmeasured = [key for key in ("patience", "best_metric") if key in changed_fields(train)]
    if unmeasured and not config.samples()["valid"]:
        raise ConfigError(
            f"train.{unmeasured[0]}={getattr(train, unmeasured[0])} has no effect without evaluations; set train.eval_iters, and a "
            "weight above 0 for the valid part of data.split"
        )


def _new_model(
    settings: PretrainModelConfig, path: Path | None, family: str, families: Families, ids: int
) -> tuple[Plugin, dict[str, Any], str]:
    """Family, config.json and its origin, of a new model given by a file or a size, whose vocabulary has ``ids`` tokens."""
    multiple = settings.vocab_multiple
    if path:
        path = path / NAME if path.is_dir() else path
        raw = read_config(path.parent) if path.name == NAME else normalize(_read_json(path), str(path))
        plugin, where = families.resolve(family, raw, str(path)), str(path)
    else:
        if family == "auto":
            raise ConfigError(
                f"model.size={settings.size} is a size of a family; set the family: llmctl --model FAMILY pretrain"
            )
        plugin = families.load(family)
        where = f"size {settings.size} of {family}"
        raw = plugin.card.config_from_dims(_size(plugin, settings.size))
    key = next(setting.key for setting in plugin.card.settings if setting.name == "vocab")
    if settings.size:
        raw = {**raw, key: ids}
    raw = _changed(raw, settings.changes, where)
    vocab = raw.get(key, ids)
    if not isinstance(vocab, int) or isinstance(vocab, bool):
        raise ConfigError(f"{where}: {key}={vocab!r} must be an integer")
    if settings.size and vocab < ids:
        raise ConfigError(f"model.changes: {key}={vocab} is less than the {ids} ids of the tokenizer; leave it out")
    return plugin, {**raw, key: padded_vocab(max(ids, vocab), multiple)}, where


def new_config(settings: PretrainModelConfig, plugin: Plugin) -> tuple[dict[str, Any], str]:
    """The config.json of a new model of a size, with the size's own vocabulary, and its origin.

    Args:
        settings: The section ``model``.
        plugin: The family.

    Raises:
        ConfigError: The card has no such size, or the changes do not fit.
    """
    where = f"size {settings.size} of {plugin.card.name}"
    raw = plugin.card.config_from_dims(_size(plugin, settings.size))
    return _changed(raw, settings.changes, where), where


def _size(plugin: Plugin, size: str) -> Dims:
    if size == "tiny" and size not in plugin.card.sizes:
        from llmctl.card.tiny import tiny_dims

        return tiny_dims(plugin.card)
    return plugin.card.dims_of(size)


def _changed(raw: dict[str, Any], changes: Sequence[str], where: str) -> dict[str, Any]:
    wrong = next((change for change in changes if "=" not in change), None)
    if wrong:
        raise ConfigError(f"model.changes: {wrong!r} is not of the form key=value, such as num_hidden_layers=4")
    made = override(raw, changes)
    unknown = sorted(set(made) - set(raw)) if where.startswith("size ") else []
    if unknown:
        raise ConfigError(f"model.changes: {where} has no {unknown[0]!r}; it has {', '.join(raw)}")
    return made


def _read_json(path: Path) -> dict[str, Any]:
    content = read_json(path, required=True)
    if not isinstance(content.get("architectures"), list):
        raise ConfigError(f'{path} is not a config.json: it needs "architectures": ["SomethingForCausalLM"]')
    return content


def _corpora(config: PretrainConfig, vocab: int) -> None:
    """Checks that all corpora can be read, have documents for each split that is used, and no id exceeds the vocabulary."""
    from llmctl.data.corpus import blend, sample_index
    from llmctl.data.corpus.samples import id_out_of_range, open_token_corpus

    parts = config_pretrain.parse_split(config.data.split)
    used = [name for name, count in config.samples().items() if count]
    for prefix in blend.parse(config.data.corpora).prefixes:
        corpus = open_token_corpus(prefix)
        documents = dict(zip(config_pretrain.SPLITS, sample_index.split_documents(parts, len(corpus)), strict=True))
        empty = [name for name in ("train", *used) if not documents[name]]
        if empty:
            raise DataError(
                f"{prefix} has no documents for {empty[0]}: data.split={config.data.split} of {len(corpus)} documents; "
                "change the weights or use more documents"
            )
        foreign = id_out_of_range(corpus.beginning(SCANNED), vocab)
        if foreign is not None:
            raise DataError(
                f"{prefix} has the id {foreign}, but the model has {vocab} tokens; build the corpus with the model's "
                "tokenizer, or set model.tokenizer to the tokenizer of the corpus for a new model"
            )
