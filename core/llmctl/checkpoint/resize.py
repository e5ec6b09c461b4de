"""Adds tokens to a model: a folder whose embedding, output head and tokenizer have them.

A new row is the mean of the rows of the tokenizer's tokens. Rows that the model has beyond these (a padded vocabulary) are
used first; a model with such rows stays padded to the same multiple. Memory: a few copies of the embedding.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl import tokenizers
from llmctl.card.dims import Dims
from llmctl.card.family import Family, Tensor
from llmctl.checkpoint import convert
from llmctl.checkpoint.convert import LazyTensor, SourceModel
from llmctl.checkpoint.formats.dtypes import cast
from llmctl.checkpoint.formats.safetensors import write_file
from llmctl.checkpoint.naming import HF, mappings_for
from llmctl.checkpoint.save import KEEP, plan_shards, write_index
from llmctl.errors import CheckpointError, TokenizerError
from llmctl.io.json_object import read_json, write_json
from llmctl.tokenizers import Tokenizer
from llmctl.tokenizers.additions import NewToken, add_to_files

VOCAB = "vocab"
"""Field of the rows of embeddings and heads."""
MULTIPLES = (256, 128, 64, 32, 16, 8)
"""What padded vocabularies are multiples of."""


@dataclass(frozen=True)
class Growth:
    """How a model grows.

    Attributes:
        tokens: The tokens that get rows, with their ids.
        known: Ids that the tokenizer has; the first new one.
        rows: Rows of the model afterwards.
    """

    tokens: tuple[NewToken, ...]
    known: int
    rows: int


@dataclass(frozen=True)
class GrownTensor:
    """Lazy view of a tensor with new rows; has what writers use: ``shape``, ``dtype``, ``numpy()``.

    Attributes:
        stored: The tensor as it is.
        shape: Its shape afterwards.
        axes: Axes that count the vocabulary.
        growth: What is added.
    """

    stored: LazyTensor
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    growth: Growth

    @property
    def dtype(self) -> str:
        """Data type of the stored tensor."""
        return self.stored.dtype

    def numpy(self) -> NDArray[Any]:
        """The values, in their storage type."""
        values = self.stored.numpy()
        for axis in self.axes:
            values = np.moveaxis(self._grown(np.moveaxis(values, axis, 0)), 0, axis)
        return np.ascontiguousarray(values)

    def _grown(self, rows: NDArray[Any]) -> NDArray[Any]:
        growth, old = self.growth, len(rows)
        known = cast(np.ascontiguousarray(rows[: min(growth.known, old)]), self.dtype, "float64")
        mean = cast(known.mean(axis=0, keepdims=True), "float64", self.dtype)
        grown = np.empty((growth.rows, *rows.shape[1:]), rows.dtype)
        grown[:old], grown[old:] = rows, mean
        grown[[token.id for token in growth.tokens]] = mean
        return grown


def plan(card: Family, dims: Dims, tokenizer: Tokenizer, texts: Sequence[str], special: Collection[str] = ()) -> Growth:
    """How a model grows by tokens; one that the tokenizer has, but that has no row in the model, keeps its id.

    Args:
        card: The family.
        dims: Dims of the model.
        tokenizer: Its tokenizer.
        texts: The tokens.
        special: Those that are special tokens, which decoding leaves out and a user's text does not produce.

    Raises:
        TokenizerError: A token is empty, given twice, or the model has it.
        CheckpointError: The family's card does not say how many rows the embedding has.
    """
    if not any(vocab_axes(tensor) for tensor in card.expand(dims)):
        raise CheckpointError(f"{card.name}: no tensor has rows for the vocabulary, so no tokens can be added")
    first = tokenizer.vocab_size
    known = {**tokenizer.special.added, **tokenizer.special.ids}
    without_row = {text: known[text] for text in texts if known.get(text, -1) >= dims[VOCAB]}
    for text in texts:
        if not text.strip() or texts.count(text) > 1:
            raise TokenizerError(
                f"the token {text!r} cannot be added: it is {'given twice' if text.strip() else 'empty'}"
            )
        if text not in without_row and (text in known or len(_ids(tokenizer, text)) == 1):
            raise TokenizerError(
                f"the token {text!r} cannot be added: the tokenizer in {tokenizer.folder} has it; leave it out"
            )
    new = (text for text in texts if text not in without_row)
    ids = {**without_row, **{text: first + index for index, text in enumerate(new)}}
    tokens = tuple(NewToken(text, ids[text], text in special) for text in texts)
    return Growth(tokens, first, _rows(dims[VOCAB], first, max(first, *(token + 1 for token in ids.values()))))


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special=False, parse_special=True)


def _rows(old: int, known: int, needed: int) -> int:
    """Rows of a model of ``old`` rows, ``known`` of them for tokens, that needs ``needed``."""
    if needed <= old:
        return old
    multiple = next((m for m in MULTIPLES if old % m == 0), 1) if old > known else 1
    return -(-needed // multiple) * multiple


def grown_dims(dims: Dims, growth: Growth) -> Dims:
    """Dims of the model afterwards."""
    return Dims(**{**dims, VOCAB: growth.rows})


def write(source: SourceModel, growth: Growth, work: Path, max_shard_bytes: int, ignored: Sequence[str] = ()) -> Dims:
    """Writes the model with its new tokens into an existing folder, in the layout of Hugging Face; returns its dims.

    Args:
        source: The model.
        growth: What is added.
        work: The folder, usually that of ``atomic_folder``.
        max_shard_bytes: Largest weight file.
        ignored: Keys of config.json that are left out.

    Raises:
        CheckpointError: A value does not fit.
        TokenizerError: The tokenizer does not read its new tokens.
    """
    card, dims = source.plugin.card, grown_dims(source.dims, growth)
    state: dict[str, Any] = dict(source.state)
    for tensor in card.expand(dims):
        if axes := vocab_axes(tensor):
            state[tensor.name] = GrownTensor(source.state[tensor.name], tensor.shape, axes, growth)
    shards = plan_shards(state, mappings_for(HF, source.plugin, dims), KEEP, max_shard_bytes)
    for name, tensors in shards.items():
        write_file(work / name, tensors)
    if len(shards) > 1:
        write_index(work, shards)
    convert.copy_other_files(source.folder.path, work)
    convert.complete_config(work, KEEP, card, source.dims, ignored)
    key = next(setting.key for setting in card.settings if setting.name == VOCAB)
    write_json(work / "config.json", {**read_json(work / "config.json"), key: growth.rows})
    add_to_files(work, [token for token in growth.tokens if token.id >= growth.known])
    _check_tokenizer(work, card, growth)
    return dims


def vocab_axes(tensor: Tensor) -> tuple[int, ...]:
    """Axes of a tensor that count the vocabulary."""
    return tuple(index for index, axis in enumerate(tensor.param.axes) if VOCAB in axis.symbols)


def _check_tokenizer(folder: Path, card: Family, growth: Growth) -> None:
    tokenizer = tokenizers.load(folder, "none", card)
    for token in growth.tokens:
        found = _ids(tokenizer, token.text)
        if found != [token.id]:
            raise TokenizerError(
                f"the token {token.text!r} cannot be added: the tokenizer encodes it as {found}, not as [{token.id}]"
            )
