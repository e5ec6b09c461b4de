"""From a checkpoint folder to a paddle layer: the family, the dims, the layer, its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmctl import plugins, runtime
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.card.sharding import Parallel
from llmctl.card.weight_map import Rename
from llmctl.checkpoint.folder import WeightFolder, open_folder
from llmctl.checkpoint.hf_config import read_config
from llmctl.checkpoint.load import Expected, check_weights, load_weights
from llmctl.checkpoint.naming import recognise


def load_model(
    folder: Path, family: str = "auto", dtype: str = "float32", allow_missing: tuple[str, ...] = ()
) -> tuple[Any, Dims, plugins.Plugin]:
    """The layer with its weights, its dims and its family.

    Args:
        folder: A checkpoint folder as Hugging Face lays it out.
        family: Name of a family, or ``"auto"`` for the one that claims the checkpoint's architecture.
        dtype: ``"float32"`` or ``"float64"``, the type to compute in.
        allow_missing: Names of tensors that may be absent and keep their initial values.

    Raises:
        LlmctlError: No family fits, or the folder's tensors are not exactly the card's.
    """
    config = read_config(folder)
    plugin = plugins.resolve(family, config, str(folder / "config.json"))
    dims = plugin.card.dims_from_config(config, str(folder / "config.json"))
    weights, renames = open_checked(folder, plugin, dims, dtype, allow_missing)
    runtime.import_paddle("a model")
    model = build(plugin, dims, dtype)
    load_weights(weights, model, renames, allow_missing=allow_missing, ignored=plugin.card.ignored_tensors)
    return model, dims, plugin


def open_checked(
    folder: Path, plugin: plugins.Plugin, dims: Dims, dtype: str, allow_missing: tuple[str, ...] = ()
) -> tuple[WeightFolder, list[Rename]]:
    """The weights of a folder and where they go, after a look at all headers; needs no paddle.

    Args:
        folder: The checkpoint.
        plugin: Its family.
        dims: Its dims.
        dtype: Of the layer that it is for.
        allow_missing: As for `load_model`.

    Raises:
        CheckpointError: Tensors are not exactly the card's; one message lists them all.
    """
    weights = open_folder(folder)
    _, renames = recognise(weights.tensors, plugin, dims)
    expected = {tensor.name: Expected(tensor.shape, dtype) for tensor in plugin.card.expand(dims)}
    check_weights(weights, expected, renames, allow_missing, plugin.card.ignored_tensors)
    return weights, renames


def build(plugin: plugins.Plugin, dims: Dims, dtype: str = "float32") -> Any:
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
