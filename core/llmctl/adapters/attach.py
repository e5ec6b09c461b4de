"""Adapters and prefixes put on a model in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmctl.adapters import targets
from llmctl.adapters.adapter import Part
from llmctl.adapters.folder import Opened, open_adapter
from llmctl.adapters.prefix import Prefix
from llmctl.checkpoint.build import load_model
from llmctl.errors import UnsupportedError
from llmctl.nn.replace import replace_layers
from llmctl.quant.blockwise import round_trip


def put(
    model: Any, paths: Iterable[str], rank: int, scale: float, dropout: float = 0.0, lengths: bool = False
) -> dict[str, Any]:
    """Replaces the layers by ones with fresh adapters; path -> ``nn.lora.LoraLinear``. Nothing else of the model moves.

    Args:
        model: The model to change.
        paths: Of the layers.
        rank: Of every adapter.
        scale: Of every adapter.
        dropout: In training.
        lengths: Whether they learn the lengths of columns (DoRA).
    """
    from llmctl.nn.lora import LoraLinear

    for parameter in model.parameters():
        parameter.stop_gradient = True
    made: dict[str, Any] = {}

    def replace(path: str, layer: Any) -> Any:
        made[path] = LoraLinear(layer, rank, scale, dropout, lengths)
        return made[path]

    replace_layers(model, paths, replace)
    return made


def quantise(model: Any, paths: Iterable[str], code: str) -> None:
    """Replaces the linears by ones whose weights are held in a code of ``nn.blockwise``."""
    from llmctl.quant.linear import QuantisedLinear

    replace_layers(model, paths, lambda path, layer: QuantisedLinear(layer, code))


def attach(model: Any, parts: Mapping[str, Part]) -> None:
    """Puts an adapter that has been read on a model, for inference."""
    for path, part in parts.items():
        layer = put(model, [path], part.rank, part.scale, lengths=part.magnitude is not None)[path]
        layer.set_weights(part.a, part.b, part.magnitude)
        layer.cache_magnitude()


def put_prefix(model: Any, shape: tuple[int, int, int, int, int], projection: int = 0) -> Any:
    """Puts fresh virtual tokens before everything the model sees; the ``nn.prefix.Prefix``. Nothing else of it moves.

    Args:
        model: The model to change.
        shape: As `prefix.shape_of`.
        projection: As for the layer.

    Raises:
        UnsupportedError: The model is not built on ``nn.causal_lm.CausalLM``, which is what looks for a prefix.
    """
    from llmctl.nn.causal_lm import CausalLM
    from llmctl.nn.prefix import Prefix as Layer

    if not isinstance(model, CausalLM):
        raise UnsupportedError(f"{type(model).__name__} takes no virtual tokens: it is not an nn.causal_lm.CausalLM")
    for parameter in model.parameters():
        parameter.stop_gradient = True
    model.prefix = Layer(shape, model.parameters()[0].dtype, projection)
    return model.prefix


def load_adapted(
    folder: Path, base: Path | None = None, family: str = "auto", dtype: str = "float32", allow_other: bool = False
) -> tuple[Any, Opened]:
    """The model of an adapter's base with the adapter on it, and where both came from.

    Args:
        folder: The adapter's.
        base: Folder of the base; None = the one that the adapter names.
        family: Name of the base's family, or ``"auto"``.
        dtype: Type to compute in.
        allow_other: Whether the base may have other values than the one that was trained on.

    Raises:
        LlmctlError: As `folder.open_adapter` and `load_model`.
    """
    opened = open_adapter(folder, base, family, allow_other)
    return adapted_model(opened, dtype), opened


def adapted_model(opened: Opened, dtype: str = "float32") -> Any:
    """The model of an opened adapter's base, quantised as in training, with the adapter on it.

    Args:
        opened: The adapter.
        dtype: Type to compute in.
    """
    model, _, _ = load_model(opened.base, opened.plugin.card.name, dtype)
    if isinstance(opened.adapter, Prefix):
        values = opened.adapter.values
        put_prefix(model, values.shape).set_values(values)
        return model
    if opened.quantised:
        quantise(model, targets.linears(opened.plugin.card, opened.dims), opened.quantised)
    attach(model, opened.adapter.parts)
    return model


def merged_model(opened: Opened, dtype: str = "float32") -> Any:
    """``adapted_model`` whose low-rank adapter has become part of the weights; virtual tokens stay before the text.

    Args:
        opened: The adapter.
        dtype: Type to compute in.
    """
    if isinstance(opened.adapter, Prefix):
        return adapted_model(opened, dtype)
    model, _, _ = load_model(opened.base, opened.plugin.card.name, dtype)
    state, parts = model.state_dict(), opened.adapter.parts
    for path in targets.linears(opened.plugin.card, opened.dims) if opened.quantised else parts:
        tensor = state[path + ".weight"]
        weight = tensor.numpy()
        if opened.quantised:
            weight = round_trip(weight, opened.quantised)
        tensor.set_value((parts[path].merged(weight) if path in parts else weight).astype(weight.dtype))
    return model
