"""Checks of a whole job that need no paddle: everything that can be known to be wrong is known here, before heavy work.

A passed check yields a job: the configuration, the plugin, dims, folders and examples.
"""

from __future__ import annotations

from llmctl.config import finetune as config
from llmctl.data.sft.examples import Example, parse_example
from llmctl.errors import ConfigError
from llmctl.jobs.common import TextJob, check_common, find_model, job_of, read_data
from llmctl.tokenizers import Tokenizer

FinetuneJob = TextJob[config.FinetuneConfig, Example]


def finetune(settings: config.FinetuneConfig, family: str) -> FinetuneJob:
    """The job, if every check passes.

    Args:
        settings: The configuration.
        family: Name of a family or ``"auto"``.

    Raises:
        LlmctlError: The first check that fails; nothing has been written.
    """
    _combinations(settings)
    found = find_model(settings, family, "sft")
    train, dev = read_data(settings, found.plugin, parse_example)
    _check_turns([*train, *dev], found.tokenizer)
    return job_of(settings, found, train, dev, "finetune", "examples")


def _combinations(settings: config.FinetuneConfig) -> None:
    check_common(settings)
    data, train = settings.data, settings.train
    if data.src_length >= data.max_length:
        raise ConfigError(
            f"data.src_length={data.src_length} leaves no room for answers in data.max_length={data.max_length}; "
            "make src_length smaller"
        )
    if train.best_metric == "exact_match" and not train.eval_generate:
        raise ConfigError("train.best_metric=exact_match needs train.eval_generate=true")


def _check_turns(examples: list[Example], tokenizer: Tokenizer) -> None:
    from llmctl.data.sft.encoding import check_plain, conversation

    if tokenizer.chat_template is None:
        for example in examples:
            check_plain(conversation(example), example.source)
