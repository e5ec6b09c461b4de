"""Tiny models of any family, made from the card, in memory or in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from llmctl import plugins
from llmctl.card.dims import Dims
from llmctl.card.tiny import STD


def write_model(folder: Path, plugin: Any, dims: Dims, seed: int = 0) -> None:
    """Writes ``config.json`` and random weights of a family into an existing folder."""
    import paddle

    from llmctl.checkpoint import save_weights
    from llmctl.checkpoint.build import build

    paddle.seed(seed)
    (folder / "config.json").write_text(json.dumps(plugin.card.config_from_dims(dims)), encoding="utf-8")
    renames = plugin.hooks.weight_map(card=plugin.card, dims=dims, source="torch")
    save_weights(folder, build(plugin, dims), renames)


def write_adapter(folder: Path, base: Path, seed: int = 0, quantized: str = "") -> Path:
    """Writes a random adapter of every linear of a model folder into a new folder; its values are small, so that few
    tokens are nearly tied.

    Args:
        folder: The folder to make.
        base: The model folder.
        seed: Seed of the values.
        quantized: The quantization of the base that the adapter records, if any.
    """
    from llmctl.adapters import base_model as bases
    from llmctl.adapters import folder as folders
    from llmctl.adapters import targets
    from llmctl.adapters.adapter import Adapter, LoraWeights
    from llmctl.checkpoint.hf_config import read_config

    config, rng = read_config(base), np.random.default_rng(seed)
    plugin = plugins.load_for(config, str(base))
    dims, parts = plugin.card.dims_from_config(config), {}
    for path, tensor in targets.linears(plugin.card, dims).items():
        a, b = (rng.normal(0, 0.1, size).astype("float32") for size in ((tensor.shape[0], 2), (2, tensor.shape[1])))
        parts[path] = LoraWeights(a, b, 0.5)
    record = {"base": bases.record(base, plugin, dims), **({"quantised": quantized} if quantized else {})}
    folder.mkdir()
    folders.write(folder, Adapter(parts, base=str(base), record=record), plugin, dims)
    return folder


def random_model(plugin: plugins.Plugin, dims: Dims) -> Any:
    """A float64 model in eval mode with every tensor random, so that no value hides a mistake."""
    from llmctl import runtime
    from llmctl.checkpoint.build import build

    runtime.import_paddle("a model")
    model, rng = build(plugin, dims, "float64"), np.random.default_rng(5)
    for name, value in model.state_dict().items():
        norm = len(value.shape) == 1 and name.endswith("weight")
        value.set_value(rng.normal(1.0 if norm else 0.0, STD, value.shape))
    model.eval()
    return model


def descend(model: Any, ids: Any, vocab: int, steps: int) -> list[float]:
    """Gradient descent on the mean loss; returns the loss before each step."""
    import paddle

    from llmctl.nn.loss import token_loss

    losses = []
    for _ in range(steps):
        hidden = model.hidden_states(ids)
        labels = ids[:, 1:].reshape([-1])
        loss = token_loss(model.logits(hidden[:, :-1]).reshape([-1, vocab]), labels) / labels.shape[0]
        losses.append(float(loss))
        loss.backward()
        with paddle.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.set_value(parameter - 1e-3 * parameter.grad)
        model.clear_gradients()
    return losses
