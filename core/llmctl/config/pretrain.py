"""The configuration of ``llmctl pretrain``."""

from __future__ import annotations

from dataclasses import dataclass

from llmctl.config.common import CommonTrainConfig, OutputConfig, ignored_config_keys, model_dtype, model_revision
from llmctl.config.parallel import ParallelConfig
from llmctl.config.schema import option, section
from llmctl.errors import DataError


@dataclass(kw_only=True)
class PretrainModelConfig:
    """The model: a checkpoint to continue from, or a new model with random weights."""

    path: str = option(
        "", "Checkpoint folder or name on a hub to continue from; empty = a new model given by `size` or `config`."
    )
    revision: str = model_revision()
    size: str = option("", "New model: name of a size on the family's card, or `tiny`.")
    config: str = option("", "New model: a config.json, or a folder or name on a hub that has one.")
    changes: list[str] = option([], "New model: overrides of its config.json, such as num_hidden_layers=4.")
    tokenizer: str = option(
        "", "Folder or name on a hub of the tokenizer that built the corpora; empty = that of `path`."
    )
    vocab_multiple: int = option(128, "New model: round its vocabulary size up to a multiple of this.", minimum=1)
    dtype: str = model_dtype()
    ignore_config_keys: list[str] = ignored_config_keys()


@dataclass(kw_only=True)
class PretrainDataConfig:
    """Corpora of token ids (Megatron .bin and .idx), as `llmctl data build` writes them."""

    corpora: list[str] = option(
        [], "Prefixes of .bin/.idx files or folders of them, optionally with a weight before each: `0.3 web 0.7 books`."
    )
    split: str = option(
        "",
        "Weights of the splits train, valid and test; empty = 949,50,1, or without test, or also without valid, if a corpus "
        "has too few documents.",
    )
    seq_length: int = option(1024, "Sequence length: tokens in a sample.", minimum=2)
    seed: int = option(42, "Random seed of the order of documents and samples.", minimum=0, maximum=2**32 - 1)
    separate_documents: bool = option(
        False, "Reset positions and attention at document ends, and mask the loss across them."
    )
    index_cache: str = option("", "Folder for cached sample indices; empty = `index-cache` next to each corpus.")
    index_wait: float = option(600.0, "Seconds to wait for another process that builds an index.", minimum=0)


@dataclass(kw_only=True)
class PretrainTrainConfig(CommonTrainConfig):
    """Optimizer (AdamW), schedule, evaluation and checkpoints."""

    max_steps: int = option(1000, "Number of steps.", minimum=1)
    learning_rate: float = option(3e-4, "Peak learning rate.", above=0)
    schedule: str = option("cosine", "Learning-rate schedule.", choices=("linear", "cosine", "constant"))
    min_learning_rate: float = option(1e-5, "Final learning rate.", minimum=0)
    weight_decay: float = option(0.1, "Decoupled weight decay (AdamW); norms and biases are not decayed.", minimum=0)
    adam_beta2: float = option(0.95, "AdamW beta2.", minimum=0, maximum=0.99999)
    eval_every: int = option(500, "Evaluate on the valid split every N steps.", minimum=1)
    eval_iters: int = option(10, "Batches in an evaluation, always the same ones; 0 = no evaluation.", minimum=0)
    test_iters: int = option(100, "Batches of the test split to evaluate at the end; 0 = none.", minimum=0)
    save_every: int = option(500, "Save a checkpoint every N steps.", minimum=1)
    best_metric: str = option(
        "eval_loss", "Metric that chooses the best checkpoint.", choices=("eval_loss", "accuracy")
    )

    @property
    def min_lr_ratio(self) -> float:
        """Final learning rate as a fraction of the peak."""
        return self.min_learning_rate / self.learning_rate


@dataclass(kw_only=True)
class PretrainConfig:
    """Pretraining."""

    model: PretrainModelConfig = section(PretrainModelConfig)
    data: PretrainDataConfig = section(PretrainDataConfig)
    train: PretrainTrainConfig = section(PretrainTrainConfig)
    parallel: ParallelConfig = section(ParallelConfig)
    output: OutputConfig = section(OutputConfig)

    def samples(self) -> dict[str, int]:
        """Number of samples that a run reads from each split; 0 for a split of weight 0.

        Raises:
            DataError: ``data.split`` is not valid, or there are more tokens than integers count.
        """
        weights = parse_split(self.data.split or DEFAULT_SPLITS[0])
        train = self.train
        counts = {
            "train": train.max_steps * train.batch_size * train.grad_accumulation,
            "valid": train.eval_iters * train.eval_batch_size,
            "test": train.test_iters * train.eval_batch_size,
        }
        name, most = max(counts.items(), key=lambda one: one[1])
        if most * self.data.seq_length > MOST_TOKENS:
            key = "max_steps" if name == "train" else "eval_iters" if name == "valid" else "test_iters"
            raise DataError(
                f"train.{key}={getattr(train, key)} asks for more samples of data.seq_length={self.data.seq_length} tokens than can be "
                "counted; lower it, or the batch size"
            )
        return {name: counts[name] if weight else 0 for name, weight in zip(SPLITS, weights, strict=True)}


MOST_TOKENS = 2**63 - 1
"""Tokens that an index of samples counts."""

SPLITS = ("train", "valid", "test")
DEFAULT_SPLITS = ("949,50,1", "949,50,0", "1,0,0")
"""Default weights of the splits: the first ones for which every corpus has enough documents."""


def parse_split(text: str) -> tuple[float, float, float]:
    """Fractions of train, valid and test, which add up to 1.

    Args:
        text: One to three weights, such as ``"949,50,1"``.

    Raises:
        DataError: The text is not that.
    """
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = []
    valid_weights = all(0 <= weight < float("inf") for weight in weights) and sum(weights) > 0
    if not (1 <= len(weights) <= 3 and valid_weights):
        raise DataError(
            f"split {text!r}: expected one to three weights for train, valid and test, none negative and not all 0, "
            "such as 949,50,1"
        )
    weights += [0.0] * (3 - len(weights))
    train, valid, test = (weight / sum(weights) for weight in weights)
    return train, valid, test
