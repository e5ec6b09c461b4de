"""Applies adapters and prefixes to a model in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llmctl.adapters import targets
from llmctl.adapters.adapter import LoraWeights
from llmctl.adapters.folder import OpenedAdapter, open_adapter
from llmctl.adapters.prefix import Prefix
from llmctl.checkpoint.partial import Done, nothing
from llmctl.errors import UnsupportedError
from llmctl.nn.replace import replace_layers
from llmctl.quant.blockwise import quantize, round_trip

Needed = Callable[[Any], AbstractContextManager[Any]]
"""Layer -> the context in which its weights have values."""


def add_lora(
    model: Any,
    paths: Iterable[str],
    rank: int,
    scale: float,
    dropout: float = 0.0,
    dora: bool = False,
    totals: Mapping[str, Callable[[Any], Any]] = MappingProxyType({}),
    needed: Needed = nullcontext,
) -> dict[str, Any]:
    """Replaces layers by ``nn.lora.LoraLinear`` with new adapters, and freezes the model; returns path -> new layer.

    Args:
        model: The model to change.
        paths: Paths of the layers.
        rank: LoRA rank.
        scale: Scale of A B.
        dropout: LoRA dropout.
        dora: Whether to train the magnitude of columns (DoRA).
        totals: Path -> ``total`` of the layer, where the model has only some of its inputs.
        needed: Layer -> the context in which its weights have values.
    """
    from llmctl.nn.lora import LoraLinear

    for parameter in model.parameters():
        parameter.stop_gradient = True
    made: dict[str, Any] = {}

    def replace(path: str, layer: Any) -> Any:
        with needed(layer):
            made[path] = LoraLinear(layer, rank, scale, dropout, dora, totals.get(path))
        return made[path]

    replace_layers(model, paths, replace)
    return made


def quantize_base(
    model: Any,
    paths: Iterable[str],
    code: str,
    needed: Needed = nullcontext,
    done: Done = nothing,
) -> None:
    """Replaces linear layers by ones with quantized weights.

    Args:
        model: The model to change.
        paths: Paths of the layers.
        code: One of ``quant.blockwise.CODES``.
        needed: As for ``add_lora``.
        done: Called with each tensor of a quantized layer that has got its values.
    """
    from llmctl.nn.arrays import to_numpy
    from llmctl.quant.linear import QuantizedLinear

    def replace(path: str, layer: Any) -> Any:
        with needed(layer):
            made = QuantizedLinear(layer, quantize(to_numpy(layer.weight), code))
        for name, tensor in made.named_buffers():
            done(f"{path}.{name}", tensor)
        return made

    replace_layers(model, paths, replace)


def attach(model: Any, layers: Mapping[str, LoraWeights]) -> None:
    """Applies a LoRA adapter to a model, for inference."""
    for path, weights in layers.items():
        layer = add_lora(model, [path], weights.rank, weights.scale, dora=weights.magnitude is not None)[path]
        layer.set_weights(weights.a, weights.b, weights.magnitude)
        layer.cache_magnitude()


def add_prefix(model: Any, shape: tuple[int, int, int, int, int], projection: int = 0) -> Any:
    """Adds a new prefix to a model and freezes the model; returns the ``nn.prefix.Prefix``.

    Args:
        model: The model to change.
        shape: See ``prefix.shape_of``.
        projection: Hidden width of the prefix MLP; 0 = none.

    Raises:
        UnsupportedError: The model is not an ``nn.causal_lm.CausalLM``, which reads the prefix.
    """
    from llmctl.nn.causal_lm import CausalLM
    from llmctl.nn.prefix import Prefix as Layer

    if not isinstance(model, CausalLM):
        raise UnsupportedError(f"{type(model).__name__} does not support prefixes: it is not an nn.causal_lm.CausalLM")
    for parameter in model.parameters():
        parameter.stop_gradient = True
    model.prefix = Layer(shape, model.parameters()[0].dtype, projection)
    return model.prefix


def load_adapted(
    folder: Path, base: Path | None = None, family: str = "auto", dtype: str = "float32", allow_other: bool = False
) -> tuple[Any, OpenedAdapter]:
    """Loads the base model of an adapter and applies the adapter; also returns the opened adapter.

    Args:
        folder: Folder of the adapter.
        base: Folder of the base model; None = the one that the adapter records.
        family: Model family, or ``"auto"``.
        dtype: Data type of the computation.
        allow_other: Whether to allow a base with other weights.

    Raises:
        LlmctlError: See ``folder.open_adapter`` and ``checkpoint.build.load_model``.
    """
    opened = open_adapter(folder, base, family, allow_other)
    return adapted_model(opened, dtype), opened


def adapted_model(opened: OpenedAdapter, dtype: str = "float32", codes: bool = True) -> Any:
    """Loads the base model of an opened adapter, quantized as in training and with the adapter's own tensors, and applies the
    adapter.

    Args:
        opened: The adapter.
        dtype: Data type of the computation.
        codes: Whether a base in codes stays in codes; False makes floats of them.
    """
    model = opened.model().layer(dtype, codes=codes)
    if isinstance(opened.adapter, Prefix):
        values = opened.adapter.values
        add_prefix(model, values.shape).set_values(values)
        return model
    if opened.quantized:
        quantize_base(model, targets.linears(opened.plugin.card, opened.dims), opened.quantized)
    attach(model, opened.adapter.layers)
    return model


def merged_model(opened: OpenedAdapter, dtype: str = "float32", codes: bool = True) -> Any:
    """Loads the base model of an opened adapter with a LoRA adapter merged into its weights; a prefix is applied, and so is
    an adapter of a base in codes, which stay as they are.

    Args:
        opened: The adapter.
        dtype: Data type of the computation.
        codes: As for ``adapted_model``.
    """
    if isinstance(opened.adapter, Prefix) or (codes and opened.scheme and opened.scheme.keeps_codes):
        return adapted_model(opened, dtype, codes)
    model = opened.model().layer(dtype, codes=codes)
    state, layers = model.state_dict(), opened.adapter.layers
    for path in targets.linears(opened.plugin.card, opened.dims) if opened.quantized else layers:
        tensor = state[path + ".weight"]
        weight = tensor.numpy()
        if opened.quantized:
            weight = round_trip(weight, opened.quantized)
        tensor.set_value((layers[path].merged(weight) if path in layers else weight).astype(weight.dtype))
    return model
