"""From a checkpoint folder to a paddle layer: family, dims, opened weights, layer.

A ``CheckedModel`` keeps the results of its checks, so a job that checks first and loads later does each only once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl import runtime
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.card.sharding import Parallel
from llmctl.card.weight_map import WeightMapping
from llmctl.checkpoint import coded
from llmctl.checkpoint.folder import WeightFolder, open_folder
from llmctl.checkpoint.hf_config import NAME, read_config
from llmctl.checkpoint.load import Expected, check_weights, fill_layer
from llmctl.checkpoint.naming import detect_layout
from llmctl.checkpoint.paddlenlp_scales import WEIGHTS, is_scaled
from llmctl.checkpoint.partial import WHOLE, Cut, Done, nothing
from llmctl.checkpoint.quantized import open_quantized, without_scheme
from llmctl.errors import CheckpointError
from llmctl.plugins import Families, Plugin
from llmctl.quant.formats.scheme import Scheme


@dataclass(frozen=True)
class CheckedModel:
    """A model that passed every check that needs no paddle; its weights are not in memory.

    Attributes:
        plugin: Plugin of its family.
        dims: Dims of the model.
        config: Content of its config.json.
        weights: Opened weights, checked against the card; None = a new model, or one whose weights are not needed.
        mappings: Weight mappings from the folder to the model.
        home: Folder of config.json of a model whose weights are not needed; None = a new model.
        scheme: How the checkpoint is quantized; None = it holds floats.
    """

    plugin: Plugin
    dims: Dims
    config: Mapping[str, Any]
    weights: WeightFolder | None = None
    mappings: Sequence[WeightMapping] = ()
    home: Path | None = None
    scheme: Scheme | None = None

    @property
    def folder(self) -> Path | None:
        """The checkpoint folder; None = a new model."""
        return self.weights.path if self.weights else self.home

    def at(self, folder: Path) -> CheckedModel:
        """The same model with the weights of another folder, such as a checkpoint; raises as ``open_model``."""
        return open_model(folder, self.plugin, self.dims, self.config)

    def layer(
        self,
        dtype: str = "float32",
        cut: Cut = WHOLE,
        seed: int = 0,
        prepare: Callable[[Any], object] = lambda model: None,
        codes: bool = True,
        done: Done = nothing,
    ) -> Any:
        """A ``paddle.nn.Layer`` with the weights of the folder, or with the initial weights of a new model.

        Linears that the folder holds as codes of GPTQ, AWQ, compressed-tensors or bitsandbytes are ``quant.linear.QuantizedLinear``.

        Args:
            dtype: Data type of the parameters: ``"float32"``, ``"float64"`` or a half type.
            cut: How it is cut among ranks; the layer has this rank's parts, and never holds the whole model.
            seed: Seed of the initial weights. Each tensor is drawn for itself, so that they do not depend on the cut.
            prepare: Called with the layer before its tensors have memory; may drop layers.
            codes: Whether codes stay codes; False makes floats of them.
            done: Called with each parameter that has got its weights.

        Raises:
            CheckpointError: A file of the folder ends early.
        """
        runtime.import_paddle("a model")
        import paddle

        with paddle.LazyGuard():
            model = build(self.plugin, self.dims, dtype)
        prepare(model)
        if codes and self.weights and self.scheme is not None and self.scheme.keeps_codes:
            held = coded.coded_linears(self.weights.tensors, self.mappings, self.plugin.card, self.dims)
            coded.hold_codes(model, held, cut, done)
        cut.apply(model, None if self.weights else seed, done=done)
        self.fill(model, cut, done)
        return model

    def fill(self, layer: Any, cut: Cut = WHOLE, done: Done = nothing) -> None:
        """Loads the weights of the folder, if there is one, into a layer of this model; arguments and errors as for ``layer``."""
        if self.weights:
            fill_layer(layer, self.weights.tensors, self.mappings, cut, done)


def load_model(
    folder: Path, family: str = "auto", dtype: str = "float32", codes: bool = True
) -> tuple[Any, Dims, Plugin]:
    """Loads a model; returns the layer, its dims and the plugin of its family.

    Args:
        folder: A checkpoint folder.
        family: Model family, or ``"auto"`` = by the architecture in config.json.
        dtype: Data type of the parameters: ``"float32"`` or ``"float64"``.
        codes: As for ``CheckedModel.layer``.

    Raises:
        LlmctlError: No family fits, or the tensors of the folder are not exactly those of the card.
    """
    model = check_model(folder, family)
    return model.layer(dtype, codes=codes), model.dims, model.plugin


def check_model(folder: Path, family: str = "auto") -> CheckedModel:
    """Checks the model of a folder without paddle; arguments and errors as for ``load_model``."""
    config, where = read_config(folder), str(folder / NAME)
    plugin = Families().resolve(family, config, where)
    config, scheme = without_scheme(folder, config)
    return open_model(folder, plugin, plugin.card.dims_from_config(config, where), config, scheme)


def open_model(
    folder: Path, plugin: Plugin, dims: Dims, config: Mapping[str, Any], scheme: Scheme | None = None
) -> CheckedModel:
    """Opens a folder whose config.json has been read, and checks the headers of all tensors.

    Args:
        folder: The checkpoint folder.
        plugin: Plugin of its family.
        dims: Dims of the model.
        config: Content of its config.json.
        scheme: How it is quantized; None = it holds floats.

    Raises:
        CheckpointError: The tensors are not exactly those of the card, and the message lists all differences; or they are codes.
    """
    if is_scaled(folder):
        raise CheckpointError(
            f"{folder} holds codes with scales ({WEIGHTS}), which only the fused engine runs; give the float model, or write one: "
            f"llmctl convert {folder} TARGET"
        )
    names = {tensor.torch_name for tensor in plugin.card.expand(dims)}
    weights = open_folder(folder) if scheme is None else open_quantized(folder, scheme, names)
    _, mappings = detect_layout(weights.tensors, plugin, dims)
    expected = {tensor.name: Expected(tensor.shape, "float32") for tensor in plugin.card.expand(dims)}
    check_weights(weights, expected, mappings, ignored=plugin.card.ignored_tensors)
    return CheckedModel(plugin, dims, config, weights, mappings, scheme=scheme)


def build(plugin: Plugin, dims: Dims, dtype: str = "float32") -> Any:
    """Builds a model with initial weights, and checks it against the card.

    Raises:
        AssertionError: The modeling code and the card disagree, which is a bug in the plugin.
    """
    model = plugin.hooks.build_model(card=plugin.card, dims=dims, parallel=Parallel(), dtype=dtype)
    if not hasattr(model, "vocabulary"):
        from llmctl.nn.vocabulary import Vocabulary

        # A model of another class has logits only.
        model.vocabulary = Vocabulary(model.logits)
    assert_matches_card(model, plugin.card, dims)
    return model


def assert_matches_card(model: Any, card: Family, dims: Dims) -> None:
    """Checks that the names and shapes in a model's state dict are exactly those of the card."""
    built = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    stated = {tensor.name: tensor.shape for tensor in card.expand(dims)}
    if built == stated:
        return
    lines = [f"in the layer only: {name}" for name in sorted(built.keys() - stated.keys())]
    lines += [f"on the card only: {name}" for name in sorted(stated.keys() - built.keys())]
    both = sorted(built.keys() & stated.keys())
    lines += [f"{name}: layer {built[name]}, card {stated[name]}" for name in both if built[name] != stated[name]]
    raise AssertionError(f"{card.name}: the layer does not match its card:\n  " + "\n  ".join(lines))
