"""Checks of a fine-tuning job."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from llmctl.config.finetune import FinetuneConfig
from llmctl.data.sft.examples import Example, ExampleReader
from llmctl.errors import ConfigError
from llmctl.jobs.common import check_common, find_model
from llmctl.jobs.examples import read_data
from llmctl.jobs.job import ExamplesJob
from llmctl.plugins import Families
from llmctl.tokenizers import Tokenizer


@dataclass(frozen=True)
class FinetuneJob(ExamplesJob[FinetuneConfig, Example]):
    """A checked fine-tuning job."""

    command: ClassVar[str] = "finetune"
    noun: ClassVar[str] = "examples"


def check(
    config: FinetuneConfig, family: str = "auto", families: Families | None = None, weights: bool = True
) -> FinetuneJob:
    """The job of a configuration; see ``job.Check``."""
    _combinations(config)
    config, model, tokenizer, output = find_model(config, family, "sft", families or Families(), weights)
    examples = read_data(config, model.plugin, ExampleReader)
    _check_turns((*examples.train, *examples.dev), tokenizer)
    return FinetuneJob(config, model, tokenizer, output, examples)


def _combinations(config: FinetuneConfig) -> None:
    check_common(config)
    train = config.train
    if train.best_metric == "exact_match" and not train.eval_generate:
        raise ConfigError("train.best_metric=exact_match needs train.eval_generate=true")


def _check_turns(examples: Iterable[Example], tokenizer: Tokenizer) -> None:
    from llmctl.data.sft.encoding import check_plain

    if tokenizer.chat_template is None:
        for example in examples:
            check_plain(example.conversation, example.source)
