"""A model on tensor-parallel ranks against the same model in one process: the loss and all gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from llmctl import plugins
from llmctl.card.dims import Dims
from llmctl.card.sharding import Parallel
from llmctl.checkpoint.partial import WHOLE, Cut
from llmctl.checkpoint.shards import merge
from llmctl.testing.tiny import random_model

Arrays = Mapping[str, Any]


class Case(NamedTuple):
    """A model and a batch.

    Attributes:
        family: Name of the family.
        dims: Dims of the model.
        arrays: The batch.
    """

    family: str
    dims: Dims
    arrays: Arrays


class Result(NamedTuple):
    """What a rank computed.

    Attributes:
        loss: The loss.
        grads: Gradients of its parts, by name.
        cut: How it is cut.
    """

    loss: float
    grads: dict[str, Any]
    cut: Cut


def alone(case: Case, change: Callable[[Any, Any], Any] = lambda model, place: None) -> Result:
    """The result of one process."""
    from llmctl.train.place import HERE

    model = random_model(plugins.load(case.family), case.dims)
    change(model, HERE)
    return _step(model, case, WHOLE)


def shared(
    mesh: Any, case: Case, sequence: bool, change: Callable[[Any, Any], Any] = lambda model, place: None
) -> Result:
    """The result of a rank that shares the model with the others of the tensor axis.

    Args:
        mesh: The ranks.
        case: The model and the batch, the same on all of them.
        sequence: Whether tokens are divided between regions.
        change: Called with the cut model and the place of the rank before the ranks are connected: adds adapters.
    """
    from llmctl.parallel import regions
    from llmctl.train.place import Place

    plugin = plugins.load(case.family)
    model = random_model(plugin, case.dims)
    cut = Cut.of(plugin, case.dims, Parallel(mesh.tensor.size, mesh.tensor.rank))
    cut.apply(model)
    change(model, Place(cut, mesh.tensor, sequence))
    regions.connect(model, plugin.card, case.dims, cut, mesh.tensor, sequence)
    return _step(model, case, cut)


def _step(model: Any, case: Case, cut: Cut) -> Result:
    from llmctl.nn.dropout import disable_dropout
    from llmctl.train.methods.loss import next_token_loss

    model.train()
    disable_dropout(model)
    found = next_token_loss(model, case.arrays)
    found.total.backward()
    weights = dict(model.named_parameters())
    if cut is not WHOLE:
        model.complete_grads(weights)
    return Result(float(found.total), {n: p.grad.numpy() for n, p in weights.items() if p.grad is not None}, cut)


def joined(results: list[Result]) -> dict[str, Any]:
    """Whole gradients by name, from those of all ranks; what several of them hold must be the same."""
    first, whole = results[0], {}
    for name in first.grads:
        parts = [result.grads[name] for result in results if name in result.grads]
        if name in first.cut.splits:
            whole[name] = merge(parts, first.cut.splits[name])
        else:
            assert len(parts) == (1 if name in first.cut.first_only else len(results)), name
            assert all(np.array_equal(part, parts[0]) for part in parts), f"the ranks' gradients of {name} differ"
            whole[name] = parts[0]
    return whole


def assert_same(case: Case, results: list[Result], expected: Result, within: float) -> None:
    """Checks that ranks computed what one process did, relative to the largest number of each tensor."""
    where = f"{case.family}: "
    assert all(result.loss == results[0].loss for result in results), where + "the ranks' losses differ"
    assert abs(results[0].loss - expected.loss) <= within * abs(expected.loss), where + "loss"
    grads = joined(results)
    assert grads.keys() == expected.grads.keys(), where + str(grads.keys() ^ expected.grads.keys())
    scale = max(np.abs(grad).max() for grad in expected.grads.values())
    for name, grad in expected.grads.items():
        # A gradient that is zero in theory is compared with the others.
        size = max(np.abs(grad).max(), 1e-4 * scale)
        assert np.abs(grads[name] - grad).max() <= within * size, f"{where}{name}"
