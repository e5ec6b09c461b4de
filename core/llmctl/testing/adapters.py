"""LoRA and DoRA: what every family must satisfy; ``FamilyConformance`` inherits it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmctl import plugins
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.testing.evidence import EXACT, proves
from llmctl.testing.tiny import descend, random_model


class AdapterConformance:
    """Tests that use the fixtures of ``FamilyConformance``."""

    def input_ids(self, dims: Dims, rows: int, length: int) -> Any:
        """As in ``FamilyConformance``."""
        raise NotImplementedError

    @proves("lora")
    def test_an_adapter_begins_as_its_base_and_moves_alone(
        self, plugin: plugins.Plugin, card: Family, dims: Dims
    ) -> None:
        import paddle

        from llmctl.adapters import targets
        from llmctl.adapters.attach import add_lora

        model = random_model(plugin, dims)
        ids = paddle.to_tensor(self.input_ids(dims, 4, 16))
        with paddle.no_grad():
            plain = model(ids).numpy()
            add_lora(model, targets.linears(card, dims), rank=2, scale=2.0)
            assert np.array_equal(model(ids).numpy(), plain)
        before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        losses = descend(model, ids, dims.vocab, steps=3)
        moved = {name for name, value in model.state_dict().items() if not np.array_equal(value.numpy(), before[name])}
        assert moved == {f"{path}.lora_{part}" for path in targets.linears(card, dims) for part in "AB"}
        assert losses[1] < losses[0] and losses[2] < losses[1]

    def test_noise_on_token_vectors_reaches_the_model_in_training_only(
        self, plugin: plugins.Plugin, card: Family, dims: Dims
    ) -> None:
        import paddle

        from llmctl.train.trainable.base import add_noise

        model = random_model(plugin, dims)
        ids = paddle.to_tensor(self.input_ids(dims, 2, 12))
        with paddle.no_grad():
            plain = model(ids).numpy()
            add_noise(model, card, dims, 5.0)
            assert np.array_equal(model(ids).numpy(), plain)
            model.train()
            for layer in model.sublayers():
                # Dropout would hide whether there is noise.
                layer.training = layer is model or isinstance(layer, paddle.nn.Embedding)
            assert np.abs(model(ids).numpy() - plain).max() > 1e-3

    @proves("lora")
    @pytest.mark.parametrize(("dora", "code"), [(False, ""), (True, ""), (False, "nf4")])
    def test_a_merged_adapter_gives_what_base_and_adapter_give(
        self, plugin: plugins.Plugin, card: Family, dims: Dims, model: Any, tmp_path: Path, dora: bool, code: str
    ) -> None:
        import paddle

        from llmctl.adapters.attach import load_adapted
        from llmctl.adapters.merge import merge
        from llmctl.checkpoint.build import load_model

        _write_base_and_adapter(tmp_path, plugin, dims, model, dora, code)
        adapted, opened = load_adapted(tmp_path / "adapter", dtype="float64")
        merge(opened, tmp_path / "merged")
        merged, _, _ = load_model(tmp_path / "merged", plugin.card.name, "float64")
        ids = paddle.to_tensor(self.input_ids(dims, 2, 12))
        with paddle.no_grad():
            adapted.eval(), merged.eval()
            expected = adapted(ids).numpy()
            np.testing.assert_allclose(merged(ids).numpy(), expected, atol=EXACT)
            assert np.abs(model(ids).numpy() - expected).max() > 0.01


def _write_base_and_adapter(
    folder: Path, plugin: plugins.Plugin, dims: Dims, model: Any, dora: bool, code: str
) -> None:
    """Writes a model folder ``base`` and a random adapter of all its linears, ``adapter``; both float64."""
    from llmctl.adapters import base_model as bases
    from llmctl.adapters import folder as folders
    from llmctl.adapters import targets
    from llmctl.adapters.adapter import Adapter, LoraWeights
    from llmctl.checkpoint import save_weights

    for name in ("base", "adapter"):
        (folder / name).mkdir()
    config = json.dumps(plugin.card.config_from_dims(dims))
    (folder / "base" / "config.json").write_text(config, encoding="utf-8")
    renames = plugin.hooks.weight_map(card=plugin.card, dims=dims, source="torch")
    save_weights(folder / "base", model, renames, dtype="float64")
    rng, parts = np.random.default_rng(9), {}
    for path, row in targets.linears(plugin.card, dims).items():
        inputs, outputs = row.shape
        a, b = rng.normal(0, 0.1, (inputs, 2)), rng.normal(0, 0.1, (2, outputs))
        parts[path] = LoraWeights(a, b, 2.0, rng.uniform(0.5, 2, outputs) if dora else None)
    record = {"base": bases.record(folder / "base", plugin, dims), "quantised": code}
    adapter = Adapter(parts, base=str(folder / "base"), record=record)
    folders.write(folder / "adapter", adapter, plugin, dims, "float64")
