"""A base model as an adapter with tensors of its own has it: whole tensors and rows of tokens in place of the base's.

Nothing is read or copied before the tensors are: a tensor of the adapter is one more stored tensor that a tensor of the card is
filled from. The dims may change: a vocabulary has other rows, or a head is no longer the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.adapters.adapter import Adapter, TokenRows
from llmctl.card.dims import Dims
from llmctl.card.family import Family, Tensor
from llmctl.checkpoint.build import CheckedModel
from llmctl.checkpoint.convert import LazyTensor, SourceModel
from llmctl.checkpoint.folder import WeightFolder
from llmctl.checkpoint.formats.dtypes import cast
from llmctl.checkpoint.formats.tensor_info import TensorInfo
from llmctl.checkpoint.load import group_by_target
from llmctl.checkpoint.resize import vocab_axes
from llmctl.checkpoint.slices import MappedTensor
from llmctl.errors import CheckpointError

EMBED, HEAD, TIED = "embed", "head", "tied"

Sources = Mapping[str, Sequence[MappedTensor]]
"""Name on the card -> the stored tensors that it is filled from."""


@dataclass(frozen=True)
class WithRows(TensorInfo):
    """A stored tensor with other values for some tokens.

    Attributes:
        stored: The tensor.
        rows: The tokens and their values.
        axis: Its axis that counts the vocabulary.
    """

    stored: TensorInfo = field(kw_only=True)
    rows: TokenRows = field(kw_only=True)
    axis: int = field(kw_only=True)

    def read_into(self, out: NDArray[Any], dtype: str, start: int = 0) -> None:
        """As ``TensorInfo.read_into``."""
        self.stored.read_into(out, dtype, start)
        try:
            values = cast(np.ascontiguousarray(self.rows.values), self.rows.values.dtype.name, dtype)
        except ValueError as error:
            raise CheckpointError(f"{self.file}: {error}") from None
        ids = np.asarray(self.rows.ids)
        if self.axis:
            out[:, ids] = values.T[start : start + len(out)]
            return
        here = (ids >= start) & (ids < start + len(out))
        out[ids[here] - start] = values[here]


def tensor_of(card: Family, dims: Dims, slot: str) -> Tensor | None:
    """The token embedding (``EMBED``) or the output head (``HEAD``) of a model; None = it has none."""
    return next((tensor for tensor in card.expand(dims) if tensor.slot == slot), None)


def with_rows(card: Family, dims: Dims, name: str, sources: Sequence[MappedTensor], rows: TokenRows) -> MappedTensor:
    """The tensor of an embedding or a head with other values for some tokens.

    Args:
        card: The family.
        dims: Dims of the model.
        name: The tensor on the card.
        sources: The stored tensors that it is filled from.
        rows: The tokens and their values.

    Raises:
        CheckpointError: It is stored in several tensors.
    """
    (info, mapping), *others = sources
    if others or mapping.src_slice or mapping.dst_slice:
        raise CheckpointError(f"{name} is stored in parts, so that rows of tokens in it cannot be replaced")
    (axis,) = vocab_axes(next(tensor for tensor in card.expand(dims) if tensor.name == name))
    axis = 1 - axis if mapping.transpose else axis
    wide = "float64" if "float64" in (info.dtype, rows.values.dtype.name) else "float32"
    made = WithRows(info.shape, wide, info.file, 0, stored=info, rows=rows, axis=axis)
    return made, mapping


def overlaid(base: Sources, adapter: Adapter, card: Family, dims: Dims) -> dict[str, Sequence[MappedTensor]]:
    """The tensors of a base with those of an adapter in their place.

    Args:
        base: Those of the base.
        adapter: The adapter, as it was read from a file.
        card: The family.
        dims: Dims of the model with the adapter; untied where its head is not its embedding.
    """
    found = dict(base)
    embed, head = tensor_of(card, dims, EMBED), tensor_of(card, dims, HEAD)
    if head is not None and embed is not None and head.name not in base:
        found[head.name] = [
            (info, replace(mapping, target=head.name, transpose=not mapping.transpose))
            for info, mapping in base[embed.name]
        ]
    found.update({name: tensor.sources for name, tensor in adapter.tensors.items()})
    for name, rows in adapter.tokens.items():
        found[name] = [with_rows(card, dims, name, found[name], rows)]
    return found


def checked_with(model: CheckedModel, adapter: Adapter, dims: Dims) -> CheckedModel:
    """A checked base with an adapter's own tensors in it; arguments as for ``overlaid``."""
    assert model.weights, "a new model cannot be a base"
    groups = group_by_target(model.weights.tensors, model.mappings)
    changed = overlaid(groups, adapter, model.plugin.card, dims)
    tensors: dict[str, TensorInfo] = {}
    mappings = []
    for target, sources in changed.items():
        for number, (info, mapping) in enumerate(sources):
            # A stored tensor may fill two of the card: an embedding, and the head that it was tied to.
            name = f"{target}/{number}"
            tensors[name] = info
            mappings.append(replace(mapping, source=name))
    return replace(model, dims=dims, weights=WeightFolder(model.weights.path, tensors), mappings=mappings)


def source_with(source: SourceModel, adapter: Adapter, dims: Dims) -> SourceModel:
    """An opened base with an adapter's own tensors in it; arguments as for ``overlaid``."""
    card = source.plugin.card
    groups = {name: tensor.sources for name, tensor in source.state.items()}
    shapes = {tensor.name: tensor.shape for tensor in card.expand(dims)}
    state = {
        name: LazyTensor(shapes[name], sources[0][0].dtype, sources)
        for name, sources in overlaid(groups, adapter, card, dims).items()
    }
    return replace(source, dims=dims, state=state)


def config_changes(card: Family, before: Dims, after: Dims) -> dict[str, Any]:
    """Keys of config.json whose values differ between two models of a family."""
    return {setting.key: after[setting.name] for setting in card.settings
            if setting.key and before.get(setting.name) != after.get(setting.name)}  # fmt: skip
