"""``FamilyConformance``: the tests that every family must pass. Recordings of original code are checked in ``golden``.

Models are tiny and float64, so that identities hold to 1e-9; weights and tokens are random with fixed seeds.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from llmctl import plugins
from llmctl.card import capabilities, support
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.card.sharding import Parallel
from llmctl.card.tiny import tiny_dims
from llmctl.card.validate import validate
from llmctl.errors import UnsupportedError
from llmctl.testing.adapters import AdapterConformance
from llmctl.testing.batching import BatchingConformance
from llmctl.testing.command_line import heavy_imports
from llmctl.testing.evidence import EXACT, KEY_BIAS, proves
from llmctl.testing.fused import FusedConformance
from llmctl.testing.on_ranks import RanksConformance
from llmctl.testing.preferences import PreferenceConformance
from llmctl.testing.prefixes import PrefixConformance
from llmctl.testing.quantization import QuantizationConformance
from llmctl.testing.serving import ServingConformance
from llmctl.testing.static import StaticConformance
from llmctl.testing.tensor_parallel import TensorParallelConformance
from llmctl.testing.tiny import descend, random_model


class FamilyConformance(
    AdapterConformance,
    BatchingConformance,
    FusedConformance,
    PreferenceConformance,
    PrefixConformance,
    QuantizationConformance,
    RanksConformance,
    ServingConformance,
    StaticConformance,
    TensorParallelConformance,
):
    """Inherit, set ``family``, and pytest does the rest.

    Attributes:
        family: Name of the entry point.
        changes: Values of the tiny model that differ from what its card implies.
        goldens: Folders as described in ``llmctl.testing.golden``, relative to the test's file. Without any, the test of
            recordings is skipped and gives no evidence.
    """

    family: ClassVar[str] = ""
    changes: ClassVar[Mapping[str, Any]] = {}
    goldens: ClassVar[tuple[str, ...]] = ()

    def input_ids(self, dims: Dims, rows: int, length: int) -> Any:
        """Random token ids [rows, length]; override it if rows need special tokens."""
        return np.random.default_rng(7).integers(3, dims.vocab, (rows, length))

    @pytest.fixture(scope="class")
    @classmethod
    def plugin(cls) -> plugins.Plugin:
        """The family, loaded through its entry point."""
        return plugins.load(cls.family)

    @pytest.fixture(scope="class")
    @classmethod
    def card(cls, plugin: plugins.Plugin) -> Family:
        """The family's card."""
        return plugin.card

    @pytest.fixture(scope="class")
    @classmethod
    def dims(cls, card: Family) -> Dims:
        """Dims of the tiny model."""
        return tiny_dims(card, cls.changes)

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, plugin: plugins.Plugin, dims: Dims) -> Any:
        """The tiny model with random weights, for evaluation."""
        return random_model(plugin, dims)

    def test_card_is_valid(self, card: Family) -> None:
        assert validate(card) == []

    def test_card_is_read_without_heavy_imports(self) -> None:
        assert heavy_imports(self.family) == []

    def test_every_size_expands_and_has_the_published_count(self, card: Family) -> None:
        for name, size in card.sizes.items():
            count = card.count(card.dims_of(name))
            assert count == size.parameters, f"{name}: the table has {count:,}, published are {size.parameters:,}"

    def test_config_of_the_dims_gives_the_dims(self, card: Family, dims: Dims) -> None:
        config = json.loads(json.dumps(card.config_from_dims(dims)))
        assert card.dims_from_config(config) == dims
        assert card.claims_config(config)

    @proves("sft")
    def test_layer_is_what_the_card_says(self, plugin: plugins.Plugin, card: Family, dims: Dims) -> None:
        from llmctl.checkpoint.build import assert_matches_card

        model = plugin.hooks.build_model(card=card, dims=dims, parallel=Parallel(), dtype="float32")
        assert_matches_card(model, card, dims)

    @proves("convert")
    def test_weights_survive_both_layouts(
        self, plugin: plugins.Plugin, card: Family, dims: Dims, model: Any, tmp_path: Path
    ) -> None:
        from llmctl.checkpoint import convert, save_weights
        from llmctl.checkpoint.build import load_model

        first = tmp_path / "hf"
        first.mkdir()
        (first / "config.json").write_text(json.dumps(card.config_from_dims(dims)), encoding="utf-8")
        renames = plugin.hooks.weight_map(card=card, dims=dims, source="torch")
        save_weights(first, model, renames, dtype="float64", max_shard_bytes=20_000)
        convert.convert(convert.open_source(first, plugin, dims), tmp_path / "native", "native")
        convert.convert(convert.open_source(tmp_path / "native", plugin, dims), tmp_path / "back", "hf")
        expected = {name: value.numpy() for name, value in model.state_dict().items()}
        for folder in (first, tmp_path / "native", tmp_path / "back"):
            loaded, read, _ = load_model(folder, self.family, "float64")
            assert read == dims
            for name, value in loaded.state_dict().items():
                assert np.array_equal(value.numpy(), expected[name]), (folder.name, name)

    @proves("sft")
    def test_cached_steps_equal_the_whole_at_once(self, dims: Dims, model: Any) -> None:
        import paddle

        from llmctl.nn.cache import KVCache

        ids = paddle.to_tensor(self.input_ids(dims, 2, 12))
        cache = KVCache(12)
        with paddle.no_grad():
            whole = model(ids).numpy()
            steps = [model(ids[:, :8], cache=cache)] + [model(ids[:, t : t + 1], cache=cache) for t in range(8, 12)]
        np.testing.assert_allclose(paddle.concat(steps, axis=1).numpy(), whole, atol=EXACT)

    @proves("sft")
    def test_padding_on_either_side_changes_nothing(self, dims: Dims, model: Any) -> None:
        import paddle

        ids = self.input_ids(dims, 2, 12)
        with paddle.no_grad():
            alone = model(paddle.to_tensor(ids[:1])).numpy()[0]
            for left in (True, False):
                padding = np.zeros((1, 4), ids.dtype)
                row = np.concatenate([padding, ids[:1]] if left else [ids[:1], padding], axis=1)
                other = self.input_ids(dims, 2, 16)[1:]
                mask = np.concatenate([row != 0, np.ones_like(other)]).astype("int64")
                mask[0] = np.r_[np.zeros(4), np.ones(12)] if left else np.r_[np.ones(12), np.zeros(4)]
                batch = model(paddle.to_tensor(np.concatenate([row, other])), paddle.to_tensor(mask)).numpy()
                assert np.isfinite(batch).all()
                np.testing.assert_allclose(batch[0, 4:] if left else batch[0, :12], alone, atol=EXACT)

    @proves("sft")
    def test_packed_documents_equal_each_alone(self, plugin: plugins.Plugin, dims: Dims) -> None:
        import paddle

        from llmctl.data.packing import collate, join

        ids = [self.input_ids(dims, 1, length)[0].tolist() for length in (11, 7, 9)]
        model = random_model(plugin, dims)
        model.aux_loss = 0.0
        rows = [SimpleNamespace(input_ids=row, labels=[*row[1:], -100], source="") for row in ids]
        apart = [_loss_and_gradients(model, collate([join([row])], 0)) for row in rows]
        together = _loss_and_gradients(model, collate([join(rows[:2]), join(rows[2:])], 0, multiple=4))
        np.testing.assert_allclose(together[0], sum(loss for loss, _ in apart), rtol=EXACT)
        for name, gradient in together[1].items():
            # A document gives no gradient to an expert that none of its tokens is routed to.
            expected = sum(gradients.get(name, 0.0) for _, gradients in apart)
            np.testing.assert_allclose(gradient, expected, atol=EXACT, err_msg=name)
        plain = model.hidden_states(paddle.to_tensor([ids[0]])).numpy()
        packed = model.hidden_states(*_packed_inputs(collate([join(rows)], 0))).numpy()
        np.testing.assert_allclose(packed[:, : len(ids[0])], plain, atol=EXACT)

    @proves("sft")
    def test_training_moves_every_tensor_and_lowers_the_loss(
        self, plugin: plugins.Plugin, card: Family, dims: Dims
    ) -> None:
        import paddle

        model = random_model(plugin, dims)
        ids = paddle.to_tensor(self.input_ids(dims, 4, 16))
        before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        losses = descend(model, ids, dims.vocab, steps=2)
        state = model.state_dict()
        moving = [tensor.name for tensor in card.expand(dims) if tensor.slot != KEY_BIAS]
        assert not [name for name in moving if np.array_equal(state[name].numpy(), before[name])]
        assert losses[1] < losses[0]

    @proves("pretrain")
    def test_a_new_model_begins_at_chance_and_learns(self, plugin: plugins.Plugin, dims: Dims) -> None:
        import math

        import paddle

        from llmctl.checkpoint.build import build
        from llmctl.train.methods.loss import next_token_loss
        from llmctl.train.optim.adamw import AdamW

        paddle.seed(1)
        model = build(plugin, dims)
        model.train()
        ids = self.input_ids(dims, 4, 16)
        arrays = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
        optimizer = AdamW(dict(model.named_parameters()))
        losses = []
        for _ in range(20):
            loss, count, _ = next_token_loss(model, arrays)
            losses.append(float(loss) / count)
            loss.backward()
            optimizer.clip_grads(count)
            optimizer.step(0.01)
        assert abs(losses[0] - math.log(dims.vocab)) < 0.5, "weights drawn with init_std must predict at chance"
        assert losses[-1] < losses[0] / 2

    def test_what_is_unsupported_is_refused_with_its_reason(self, card: Family) -> None:
        for method in capabilities.METHODS:
            found = support.state(card, method)
            if isinstance(found, capabilities.Unsupported):
                with pytest.raises(UnsupportedError) as error:
                    support.require(card, method)
                assert found.reason in str(error.value)
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    support.require(card, method)

    @proves("sft")
    def test_recordings_of_the_original_code_are_repeated(self, request: pytest.FixtureRequest) -> None:
        from llmctl.testing.golden import check_golden

        if not self.goldens:
            pytest.skip(f"{self.family} has no goldens: nothing compares it with its original implementation")
        for golden in self.goldens:
            check_golden(request.path.parent / golden, self.family)


def _packed_inputs(arrays: Mapping[str, Any]) -> tuple[Any, ...]:
    """Arguments of ``hidden_states`` for collated rows of documents."""
    import paddle

    names = ("input_ids", None, "position_ids", None, "document_end")
    return tuple(None if name is None else paddle.to_tensor(arrays[name]) for name in names)


def _loss_and_gradients(model: Any, arrays: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """The sum of the losses of all labels, and the gradient of every parameter."""
    from llmctl.train.methods.evaluate import label_states

    model.eval()
    model.clear_gradients()
    loss = model.vocabulary.loss(*label_states(model, arrays))
    loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return float(loss), {name: grad.numpy() for name, grad in grads.items() if grad is not None}
