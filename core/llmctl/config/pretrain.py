"""The configuration of pretraining; how fields are read, checked and documented is in ``schema.py``."""

from __future__ import annotations

from dataclasses import dataclass

from llmctl.config.common import OutputConfig, UpdateConfig, model_dtype
from llmctl.config.schema import option, section
from llmctl.errors import DataError


@dataclass(kw_only=True)
class PretrainModelConfig:
    """The model: a checkpoint to train on, or the sizes of a new one."""

    path: str = option("", "Checkpoint folder to train on; empty = a new model of `size` or `config`.")
    size: str = option("", "A new model of this size of the family's card, or `tiny`.")
    config: str = option("", "A new model of this config.json, or of the one in this folder.")
    changes: list[str] = option([], "Keys of a new model's config.json, such as num_hidden_layers=4.")
    tokenizer: str = option("", "Folder with the tokenizer that the corpora were made with; empty = that of `path`.")
    vocab_multiple: int = option(128, "A new model's vocabulary is rounded up to a multiple of this.", minimum=1)
    dtype: str = model_dtype()


@dataclass(kw_only=True)
class CorporaConfig:
    """Corpora of token ids, as `llmctl data build` makes them."""

    corpora: list[str] = option([], "Prefixes or folders, with weights before them or without; one text or a list.")
    split: str = option("949,50,1", "Weights by which documents are divided into train, valid and test.")
    seq_length: int = option(1024, "Tokens of a sample.", minimum=2)
    seed: int = option(42, "Seed of the order of documents and samples.", minimum=0, maximum=2**32 - 1)
    separate_documents: bool = option(
        False, "Positions restart with each document, and none sees another or is asked for its first token."
    )
    index_cache: str = option("", "Folder for sample indices; empty = index-cache beside the corpora.")
    index_wait: float = option(600.0, "Seconds to wait for another process that builds an index.", minimum=0)


@dataclass(kw_only=True)
class PretrainTrainConfig(UpdateConfig):
    """Steps, optimiser (AdamW), schedule, evaluation and checkpoints."""

    max_steps: int = option(1000, "Number of steps.", minimum=1)
    learning_rate: float = option(3e-4, "Peak learning rate.", above=0)
    schedule: str = option("cosine", "Course of the learning rate.", choices=("linear", "cosine", "constant"))
    min_learning_rate: float = option(1e-5, "Learning rate at the end.", minimum=0)
    weight_decay: float = option(0.1, "Decoupled decay of weights; norms and biases have none.", minimum=0)
    adam_beta2: float = option(0.95, "Decay of AdamW's second moment.", minimum=0, maximum=0.99999)
    eval_every: int = option(500, "Steps between two evaluations on the valid split.", minimum=1)
    eval_iters: int = option(10, "Batches of an evaluation, always the same ones; 0 = none.", minimum=0)
    test_iters: int = option(100, "Batches of the test split at the end; 0 = none.", minimum=0)
    save_every: int = option(500, "Steps between two checkpoints.", minimum=1)
    best_metric: str = option("eval_loss", "What the best checkpoint is chosen by.", choices=("eval_loss", "accuracy"))

    @property
    def min_lr_ratio(self) -> float:
        """The learning rate at the end as a part of the peak."""
        return self.min_learning_rate / self.learning_rate


@dataclass(kw_only=True)
class PretrainConfig:
    """Pretraining."""

    model: PretrainModelConfig = section(PretrainModelConfig)
    data: CorporaConfig = section(CorporaConfig)
    train: PretrainTrainConfig = section(PretrainTrainConfig)
    output: OutputConfig = section(OutputConfig)

    def samples(self) -> dict[str, int]:
        """Samples that a run takes of each split; none of a split of weight 0.

        Raises:
            DataError: ``data.split`` is no split.
        """
        pass

        weights = parse_split(self.data.split)
        train = self.train
        counts = {
            "train": train.max_steps * train.batch_size * train.grad_accumulation,
            "valid": train.eval_iters * train.eval_batch_size,
            "test": train.test_iters * train.eval_batch_size,
        }
        return {name: counts[name] if weight else 0 for name, weight in zip(SPLITS, weights, strict=True)}


SPLITS = ("train", "valid", "test")


def parse_split(text: str) -> tuple[float, float, float]:
    """Parts of train, valid and test, which add up to 1.

    Args:
        text: One to three weights, such as ``"949,50,1"``.

    Raises:
        DataError: It is not that.
    """
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = []
    good = 1 <= len(weights) <= 3 and all(0 <= weight < float("inf") for weight in weights) and sum(weights) > 0
    if not good:
        raise DataError(
            f"the split {text!r} is not one to three weights for train, valid and test, none negative and not all 0, such "
            "as 949,50,1"
        )
    weights += [0.0] * (3 - len(weights))
    train, valid, test = (weight / sum(weights) for weight in weights)
    return train, valid, test
