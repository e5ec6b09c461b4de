"""Prefix tuning: what every family must satisfy; ``FamilyConformance`` inherits it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmctl import plugins
from llmctl.card import capabilities, support
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.errors import UnsupportedError
from llmctl.testing.evidence import EXACT, proves
from llmctl.testing.tiny import descend, random_model

TOKENS = 5


class PrefixConformance:
    """Tests that use the fixtures of ``FamilyConformance``."""

    def input_ids(self, dims: Dims, rows: int, length: int) -> Any:
        """As in ``FamilyConformance``."""
        raise NotImplementedError

    def in_context(self, model: Any, first: Any, second: Any) -> Any:
        """Logits of the second text [B, T] after the first, which virtual tokens made of the first should reproduce.

        Override it for a family whose positions restart with its own text.
        """
        import paddle

        return model(paddle.concat([first, second], axis=1))[:, first.shape[1] :]

    @pytest.fixture
    def prefixed(self, plugin: plugins.Plugin, card: Family, dims: Dims) -> Iterator[Any]:
        """A random model whose virtual tokens are the keys and values of a text, that text, and the prefix."""
        import paddle

        from llmctl.adapters.attach import add_prefix
        from llmctl.adapters.prefix import shape_of
        from llmctl.nn.cache import KVCache

        if isinstance(support.state(card, "prefix-tuning"), capabilities.Unsupported):
            pytest.skip("the family does not support prefix tuning")
        model = random_model(plugin, dims)
        text, cache = paddle.to_tensor(self.input_ids(dims, 1, TOKENS)), KVCache(TOKENS)
        with paddle.no_grad():
            model(text, cache=cache)
        kept = [[part[0].numpy() for part in cache.pair(layer)] for layer in range(dims.layers)]
        prefix = add_prefix(model, shape_of(dims, TOKENS))
        prefix.set_values(np.stack([np.stack(pair) for pair in kept]))
        yield SimpleNamespace(model=model, text=text, prefix=prefix)

    @proves("prefix-tuning")
    def test_virtual_tokens_do_what_the_tokens_they_came_from_do(self, dims: Dims, prefixed: Any) -> None:
        import paddle

        ids = paddle.to_tensor(self.input_ids(dims, 2, 9))
        with paddle.no_grad():
            found = prefixed.model(ids).numpy()
            prefixed.model.prefix = None
            plain = prefixed.model(ids).numpy()
            expected = self.in_context(prefixed.model, prefixed.text.expand([2, TOKENS]), ids).numpy()
        np.testing.assert_allclose(found, expected, atol=EXACT)
        assert np.abs(plain - expected).max() > 0.01

    @proves("prefix-tuning")
    def test_after_virtual_tokens_cached_steps_and_padding_change_nothing(self, dims: Dims, prefixed: Any) -> None:
        import paddle

        from llmctl.nn.cache import KVCache

        model, ids = prefixed.model, self.input_ids(dims, 2, 12)
        row = paddle.to_tensor(ids[:1])
        padded = paddle.to_tensor(
            np.stack([np.concatenate([np.zeros(3, ids.dtype), ids[0]]), np.r_[ids[1], ids[1][-3:]]])
        )
        mask = paddle.to_tensor(np.stack([np.r_[np.zeros(3), np.ones(12)], np.ones(15)]).astype("int64"))
        cache = KVCache(15)
        with paddle.no_grad():
            alone = model(row).numpy()[0]
            np.testing.assert_allclose(model(padded, mask)[0, 3:].numpy(), alone, atol=EXACT)
            steps = [model(padded[:, :11], mask[:, :11], cache=cache)]
            steps += [model(padded[:, t : t + 1], mask[:, : t + 1], cache=cache) for t in range(11, 15)]
        np.testing.assert_allclose(paddle.concat(steps, axis=1)[0, 3:].numpy(), alone, atol=EXACT)

    @proves("prefix-tuning")
    def test_packed_documents_see_the_virtual_tokens_alike(self, dims: Dims, prefixed: Any) -> None:
        """Or are refused, where a window leaves each of them other virtual tokens."""
        from llmctl.data.packing import collate, join
        from llmctl.train.methods.evaluate import label_states

        rows = [self.input_ids(dims, 1, length)[0].tolist() for length in (11, 7, 9)]
        documents = [SimpleNamespace(input_ids=ids, labels=[*ids[1:], -100], source="") for ids in rows]

        def run(arrays: Any) -> tuple[float, list[Any]]:
            prefixed.model.clear_gradients()
            loss = prefixed.model.vocabulary.loss(*label_states(prefixed.model, arrays))
            loss.backward()
            return float(loss), [parameter.grad.numpy() for parameter in prefixed.prefix.parameters()]

        together = collate([join(documents[:2]), join(documents[2:])], 0, multiple=4)
        if TOKENS + max(map(len, rows)) > (dims.get("window") or sys.maxsize):
            with pytest.raises(UnsupportedError, match=f"do not fit a window of {dims.window} positions"):
                run(together)
            return
        apart = [run({name: value for name, value in collate([join([d])], 0).items() if name in ("input_ids", "labels")})
                 for d in documents]  # fmt: skip
        loss, gradients = run(together)
        np.testing.assert_allclose(loss, sum(loss for loss, _ in apart), rtol=EXACT)
        for i, gradient in enumerate(gradients):
            np.testing.assert_allclose(gradient, sum(gradients[i] for _, gradients in apart), atol=EXACT)

    @proves("prefix-tuning")
    @pytest.mark.parametrize("projection", [0, 6])
    def test_virtual_tokens_move_alone_and_lower_the_loss(
        self, plugin: plugins.Plugin, dims: Dims, prefixed: Any, projection: int
    ) -> None:
        import paddle

        from llmctl.adapters.attach import add_prefix
        from llmctl.adapters.prefix import shape_of

        paddle.seed(3)
        model = random_model(plugin, dims)
        add_prefix(model, shape_of(dims, TOKENS), projection)
        before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        losses = descend(model, paddle.to_tensor(self.input_ids(dims, 4, 16)), dims.vocab, steps=2)
        moved = {name for name, value in model.state_dict().items() if not np.array_equal(value.numpy(), before[name])}
        assert moved == {name for name in before if name.startswith("prefix.")}
        assert losses[1] < losses[0]

    @proves("prefix-tuning")
    @pytest.mark.parametrize("layout", ["hf", "native"])
    def test_a_stored_prefix_is_the_prefix(
        self, plugin: plugins.Plugin, dims: Dims, prefixed: Any, tmp_path: Path, layout: str
    ) -> None:
        import paddle

        from llmctl.adapters import base_model as bases
        from llmctl.adapters import folder as folders
        from llmctl.adapters.attach import load_adapted
        from llmctl.adapters.prefix import Prefix
        from llmctl.checkpoint import save_weights

        for name in ("base", "prefix"):
            (tmp_path / name).mkdir()
        config = json.dumps(plugin.card.config_from_dims(dims))
        (tmp_path / "base" / "config.json").write_text(config, encoding="utf-8")
        ids = paddle.to_tensor(self.input_ids(dims, 2, 9))
        with paddle.no_grad():
            expected = prefixed.model(ids).numpy()
        values, prefixed.model.prefix = prefixed.prefix.values(), None
        renames = plugin.hooks.weight_map(card=plugin.card, dims=dims, source="torch")
        save_weights(tmp_path / "base", prefixed.model, renames, dtype="float64")
        record = {"base": bases.record(tmp_path / "base", plugin, dims)}
        folders.write(tmp_path / "prefix", Prefix(values, "", record), plugin, dims, "float64", layout)
        model, opened = load_adapted(tmp_path / "prefix", dtype="float64")
        assert np.array_equal(opened.adapter.values, values)
        model.eval()
        with paddle.no_grad():
            np.testing.assert_allclose(model(ids).numpy(), expected, atol=EXACT)
