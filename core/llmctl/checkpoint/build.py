"""From a checkpoint folder to a paddle layer: the family, the dims, the opened weights, the layer.

A ``CheckedModel`` holds what the checks found, so that a job that checks first and loads later does either once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl import runtime
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.card.sharding import Parallel
from llmctl.card.weight_map import WeightMapping
from llmctl.checkpoint.folder import WeightFolder, open_folder
from llmctl.checkpoint.hf_config import NAME, read_config
from llmctl.checkpoint.load import Expected, check_weights, fill_layer
from llmctl.checkpoint.naming import recognise
from llmctl.plugins import Families, Plugin


@dataclass(frozen=True)
class CheckedModel:
    """A model that passed every check that needs no paddle. None of its tensors are in memory.

    Attributes:
        plugin: The family.
        dims: The model's dims.
        config: Content of its config.json.
        weights: Its opened weights, compared with the card; None = a new model, which has none yet.
        renames: Which tensor of the folder goes where.
    """

    plugin: Plugin
    dims: Dims
    config: Mapping[str, Any]
    weights: WeightFolder | None = None
    renames: Sequence[WeightMapping] = ()

    @property
    def folder(self) -> Path | None:
        """The checkpoint folder; None = a new model."""
        return self.weights.path if self.weights else None

    def at(self, folder: Path) -> CheckedModel:
        """The same model with the weights of another folder, such as a checkpoint; errors as for `open_model`."""
        return open_model(folder, self.plugin, self.dims, self.config)

    def layer(self, dtype: str = "float32") -> Any:
        """A ``paddle.nn.Layer`` with the weights of the folder, or with the initial values of a new model.

        Args:
            dtype: ``"float32"``, ``"float64"`` or a half type: of its parameters.

        Raises:
            CheckpointError: A file of the folder ends early.
        """
        runtime.import_paddle("a model")
        model = build(self.plugin, self.dims, dtype)
        self.fill(model)
        return model

    def fill(self, layer: Any) -> None:
        """Puts the weights of the folder, if there is one, into a layer of this model; errors as for `layer`."""
        if self.weights:
            fill_layer(layer, self.weights.tensors, self.renames)


def load_model(folder: Path, family: str = "auto", dtype: str = "float32") -> tuple[Any, Dims, Plugin]:
    """The layer with its weights, its dims and its family.

    Args:
        folder: A checkpoint folder as Hugging Face lays it out.
        family: Name of a family, or ``"auto"`` for the one that claims the checkpoint's architecture.
        dtype: ``"float32"`` or ``"float64"``, the type to compute in.

    Raises:
        LlmctlError: No family fits, or the folder's tensors are not exactly the card's.
    """
    model = check_model(folder, family)
    return model.layer(dtype), model.dims, model.plugin


def check_model(folder: Path, family: str = "auto") -> CheckedModel:
    """A folder's model, checked without paddle; arguments and errors as for `load_model`."""
    config, where = read_config(folder), str(folder / NAME)
    plugin = Families().resolve(family, config, where)
    return open_model(folder, plugin, plugin.card.dims_from_config(config, where), config)


def open_model(folder: Path, plugin: Plugin, dims: Dims, config: Mapping[str, Any]) -> CheckedModel:
    """The model of a folder whose config.json has been read, after a look at the headers of all tensors.

    Args:
        folder: The checkpoint.
        plugin: Its family.
        dims: Its dims.
        config: Content of its config.json.

    Raises:
        CheckpointError: Tensors are not exactly the card's; one message lists them all.
    """
    weights = open_folder(folder)
    _, renames = recognise(weights.tensors, plugin, dims)
    expected = {tensor.name: Expected(tensor.shape, "float32") for tensor in plugin.card.expand(dims)}
    check_weights(weights, expected, renames, ignored=plugin.card.ignored_tensors)
    return CheckedModel(plugin, dims, config, weights, renames)


def build(plugin: Plugin, dims: Dims, dtype: str = "float32") -> Any:
    """A layer with its initial values, checked against the card.

    Raises:
        AssertionError: The modeling code and the card disagree, a defect of the plugin.
    """
    model = plugin.hooks.build_model(card=plugin.card, dims=dims, parallel=Parallel(), dtype=dtype)
    assert_matches_card(model, plugin.card, dims)
    return model


def assert_matches_card(model: Any, card: Family, dims: Dims) -> None:
    """Passes when the layer's state dict is exactly the card's table, names and shapes."""
    built = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    stated = {tensor.name: tensor.shape for tensor in card.expand(dims)}
    if built == stated:
        return
    lines = [f"in the layer only: {name}" for name in sorted(built.keys() - stated.keys())]
    lines += [f"on the card only: {name}" for name in sorted(stated.keys() - built.keys())]
    both = sorted(built.keys() & stated.keys())
    lines += [f"{name}: layer {built[name]}, card {stated[name]}" for name in both if built[name] != stated[name]]
    raise AssertionError(f"{card.name}: the layer does not match its card:\n  " + "\n  ".join(lines))
