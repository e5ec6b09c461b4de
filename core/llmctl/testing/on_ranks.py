"""Training on several ranks: what every family must satisfy; ``FamilyConformance`` inherits it.

Ranks are processes on CPUs. Each test compares two of them with one process: the loss and all gradients, in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from llmctl import plugins
from llmctl.card import support
from llmctl.card.capabilities import Unsupported
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.card.tiny import tiny_dims
from llmctl.config.parallel import ParallelConfig
from llmctl.errors import ConfigError
from llmctl.jobs import degrees
from llmctl.testing.evidence import EXACT, proves
from llmctl.testing.tensor_ranks import Case, Result, alone, assert_same, shared
from llmctl.testing.tiny import random_model

Arrays = Mapping[str, Any]


class RanksConformance:
    """Tests that use the fixtures of ``FamilyConformance``."""

    changes: ClassVar[Mapping[str, Any]] = {}

    def input_ids(self, dims: Dims, rows: int, length: int) -> Any:
        """As in ``FamilyConformance``."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def cases(cls, card: Family) -> Sequence[Case]:
        """A model whose heads two ranks can share, if need be one key-value head, with two batches."""
        settable = {setting.name for setting in card.settings if setting.key}
        plain = tiny_dims(card, cls.changes)
        heads = {"heads": 8, "kv_heads": 8 if plain.kv_heads == plain.heads else 1}
        dims = tiny_dims(card, {**cls.changes, **{name: n for name, n in heads.items() if name in settable}})
        found = []
        for rows, length in ((2, 13), (3, 9)):
            ids = cls().input_ids(dims, rows, length)
            found.append(Case(card.name, dims, {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}))
        return found

    @pytest.fixture(scope="class")
    @classmethod
    def whole(cls, cases: Sequence[Case]) -> list[Result]:
        """What one process computes of each batch."""
        return [alone(case) for case in cases]

    @pytest.fixture(scope="class")
    @classmethod
    def of_two(cls, cases: Sequence[Case]) -> list[Any]:
        """What two ranks compute: as those of a layer, and as stages."""
        from llmctl.parallel.topology import Topology
        from llmctl.testing.ranks import run_ranks

        return run_ranks(2, _two, cases, topology=Topology(pipeline=2))

    @pytest.fixture(scope="class")
    @classmethod
    def with_rows(cls, cases: Sequence[Case]) -> list[Any]:
        """What two ranks with a batch each compute: with a part of the optimizer, and of the experts."""
        from llmctl.parallel.topology import Topology
        from llmctl.testing.ranks import run_ranks

        return run_ranks(2, _rows, cases, topology=Topology(sharding=2, expert=2))

    @proves("tensor-parallel")
    def test_two_ranks_share_layers_and_positions(
        self, cases: Sequence[Case], whole: list[Result], of_two: Any
    ) -> None:
        for number, case in enumerate(cases[:1]):
            assert_same(case, [found[0][number] for found in of_two], whole[number], EXACT)

    @proves("pipeline")
    def test_two_stages_of_layers(self, cases: Sequence[Case], whole: list[Result], of_two: Any) -> None:
        (_, (nothing, first)), (_, (losses, last)) = of_two
        assert not nothing and losses == pytest.approx([result.loss for result in whole], rel=EXACT)
        for name in first.keys() & last.keys():
            np.testing.assert_array_equal(first[name], last[name], err_msg=name)
        _assert_close({**first, **last}, _added(whole))

    @proves("sharding")
    @pytest.mark.parametrize("stage", [1, 2, 3])
    def test_two_ranks_share_the_optimizer_gradients_and_weights(
        self, stage: int, cases: Sequence[Case], with_rows: Any
    ) -> None:
        expected = _updated(cases, cases, lambda model, parameters: None)
        for found in with_rows:
            _assert_close(found[0][stage], expected)

    @proves("expert-parallel")
    def test_two_ranks_share_the_experts(
        self, card: Family, cases: Sequence[Case], whole: list[Result], with_rows: Any
    ) -> None:
        if isinstance(support.state(card, "expert-parallel"), Unsupported):
            with pytest.raises(ConfigError, match="the model has no experts"):
                degrees.check(ParallelConfig(expert=2), None, card, cases[0].dims)
            return
        losses, grads = zip(*(found[1] for found in with_rows), strict=True)
        assert sum(losses) == pytest.approx(sum(result.loss for result in whole), rel=EXACT)
        total = _added(whole)
        for own, other in (grads, grads[::-1]):
            # What only one of them has are experts; of all else each has the gradient of its own rows.
            _assert_close(
                {name: grad + other[name] if name in other else grad for name, grad in own.items()},
                {name: total[name] for name in own},
            )
        assert grads[0].keys() | grads[1].keys() == total.keys()


def _two(mesh: Any, cases: Sequence[Case]) -> tuple[list[Result], tuple[list[float], dict[str, Any]]]:
    from llmctl.parallel.axis import Axis

    everyone = Axis("tensor", mesh.rank.number, 2, mesh.world.group)
    return [shared(SimpleNamespace(tensor=everyone), case, True) for case in cases[:1]], _staged(mesh, cases)


def _staged(mesh: Any, cases: Sequence[Case]) -> tuple[list[float], dict[str, Any]]:
    """Losses, on the last stage, and the gradients of this stage."""
    from llmctl.parallel.cuts import cut
    from llmctl.parallel.pipeline import Pipeline
    from llmctl.parallel.stage import Stage
    from llmctl.train.methods.loss import next_token_hidden, next_token_loss

    plugin, model = _training(cases[0])
    stage = Stage(cut(plugin.card, cases[0].dims, 2, (), 1), mesh.pipeline.rank)
    stage.attach(model)
    losses = []

    def loss(number: int, hidden: Any) -> Any:
        total = next_token_loss(model, cases[number].arrays, hidden).total
        losses.append(float(total))
        return total

    def hidden(number: int) -> Any:
        return next_token_hidden(model, cases[number].arrays)

    Pipeline(stage, mesh.hybrid, mesh.pipeline).run(len(cases), hidden, loss, lambda: None)
    stage.sum_over_stages(dict(model.named_parameters()), mesh.pipeline, mesh.axis("ends"))
    return losses, _gradients(model)


def _rows(mesh: Any, cases: Sequence[Case]) -> tuple[dict[int, Any], tuple[float, dict[str, Any]]]:
    from llmctl.parallel.regions import units_of
    from llmctl.train.optim.shards import Shards
    from llmctl.train.optim.units import Units, layers_in

    own, plugin = [cases[mesh.number]], plugins.load(cases[0].family)
    paths = units_of(plugin.card.expand(cases[0].dims))
    stages = {
        stage: _updated(cases, own, lambda model, parameters, stage=stage: Shards(parameters, mesh, stage))
        for stage in (1, 2)
    }
    stages[3] = _updated(cases, own, lambda model, parameters: Units(parameters, mesh, layers_in(model, paths)))
    return stages, _with_experts(mesh, own[0])


def _updated(cases: Sequence[Case], own: Sequence[Case], held: Any) -> dict[str, Any]:
    """The weights after an update by the gradients of all cases, of which this process has its own."""
    from llmctl.train.methods.loss import next_token_loss
    from llmctl.train.optim.adamw import AdamW, trained

    _, model = _training(cases[0])
    parameters = trained(dict(model.named_parameters()))
    # A large epsilon: else gradients near zero move weights by their rounding.
    optimizer = AdamW(parameters, eps=1e-2, max_norm=0.1, weights=(weights := held(model, parameters)))
    for case in own:
        next_token_loss(model, case.arrays).total.backward()
        optimizer.accumulate_grads()
    optimizer.sum_grads()
    optimizer.clip_grads(float(sum(case.arrays["labels"].size for case in cases)))
    optimizer.step(0.01)
    for unit in getattr(weights, "units", ()):
        unit.fetch()
    return {name: value.numpy() for name, value in model.state_dict().items()}


def _with_experts(mesh: Any, case: Case) -> tuple[float, dict[str, Any]]:
    """Loss and gradients of this rank's rows, with half of the experts."""
    from llmctl.parallel import experts
    from llmctl.train.methods.loss import next_token_loss

    plugin, model = _training(case)
    if isinstance(support.state(plugin.card, "expert-parallel"), Unsupported):
        return 0.0, {}
    experts.divide(model, mesh.axis("expert"))
    loss = next_token_loss(model, case.arrays).total
    loss.backward()
    return float(loss), _gradients(model)


def _training(case: Case) -> tuple[plugins.Plugin, Any]:
    from llmctl.nn.dropout import disable_dropout

    plugin = plugins.load(case.family)
    model = random_model(plugin, case.dims)
    disable_dropout(model)
    model.train()
    return plugin, model


def _gradients(model: Any) -> dict[str, Any]:
    return {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}


def _added(results: Sequence[Result]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for result in results:
        for name, grad in result.grads.items():
            total[name] = total.get(name, 0) + grad
    return total


def _assert_close(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    scale = max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        size = max(np.abs(value).max(), 1e-4 * scale)
        assert np.abs(found[name] - value).max() <= EXACT * size, name
