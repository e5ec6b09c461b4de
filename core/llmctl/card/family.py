"""A family's card: the table of tensors from which everything specific to a family is derived.

Here are the rows (``Param``, ``Size``, ``Moe``), the card (``Family``) and what it expands to (``Tensor``). Fields of
config.json are in ``config_fields.py``, their values in ``dims.py``; what core derives from a card (weight mappings, splits,
quantization targets, the fused decoder) is in ``plugins/defaults.py``. Nothing here imports paddle or numpy.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import prod
from typing import Any

from llmctl.card.capabilities import State
from llmctl.card.config_fields import ConfigField
from llmctl.card.dims import Dims, check_together
from llmctl.card.inert_keys import passed_over, unknown_keys, without_keys
from llmctl.card.shapes import Axis, parse_shape
from llmctl.card.tokens import TokenFacts
from llmctl.errors import ConfigError
from llmctl.io.limits import MODEL_PARTS

PLACEHOLDERS = {"layer": "layers", "expert": "experts"}
"""Placeholder in the names of rows -> the field that holds its count."""


@dataclass(frozen=True)
class Param:
    """One checkpoint tensor, or one per layer and expert if the name holds ``{layer}`` or ``{expert}``.

    Attributes:
        name: Name in the model's state dict without the family's prefix; a leading ``/`` means no prefix.
        shape: Symbolic shape as paddle stores it; a linear's weight is ``in, out``.
        torch: Name in the torch checkpoint, if it is not the same name under the torch prefix; a leading ``/`` as above.
        slot: Which tensor of the fused decoder it is, one of ``slots.SLOTS``; ``qkv.1`` is a part of a slot.
        kind: ``linear``, ``embed``, ``norm``, ``bias`` or ``router``; by default ``linear`` for two axes, else ``bias``.
        when: Name of a field that must be true for the tensor to exist, or of one with a value for each layer; ``"not tied"``
            negates.
        shard: Symbols to split under tensor parallelism instead of the usual ones (``()`` = never split).
        torch_layout: ``""`` = torch stores linears transposed; ``"same"`` = as here (transformers' Conv1D).
    """

    name: str
    shape: str
    torch: str = ""
    slot: str = ""
    kind: str = ""
    when: str = ""
    shard: tuple[str, ...] | None = None
    torch_layout: str = ""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The parsed shape."""
        return parse_shape(self.shape)

    @property
    def resolved_kind(self) -> str:
        """``kind``, or the kind implied by the number of axes."""
        return self.kind or ("linear" if len(self.axes) == 2 else "bias")

    def present(self, dims: Mapping[str, Any], layer: int | None = None) -> bool:
        """Whether a model of these dims has the tensor, in this layer where the name holds ``{layer}``."""
        if not self.when:
            return True
        negated, name = self.when.startswith("not "), self.when.removeprefix("not ")
        value = dims[name]
        if isinstance(value, tuple):
            value = any(value) if layer is None else value[layer]
        return bool(value) is not negated


@dataclass(frozen=True)
class Tensor:
    """A tensor of a model: a row of a card, expanded for given dims."""

    name: str
    shape: tuple[int, ...]
    torch_name: str
    transpose: bool
    kind: str
    slot: str
    layer: int | None
    expert: int | None
    param: Param

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Size:
    """A published checkpoint, or ``tiny``, a small model for tests.

    Attributes:
        source: URL of its config.json; empty for a model that is not published.
        parameters: Published number of parameters; a test compares it with the table's.
        values: Values of its fields by name; omitted ones have their defaults.
    """

    source: str
    parameters: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Moe:
    """Routing of a mixture of experts.

    Attributes:
        router: Kind of router: ``softmax-topk``.
        top_k: Experts per token.
        renormalize: Whether the weights of a token's experts are renormalized to sum to 1.
    """

    router: str
    top_k: int
    renormalize: bool = True


@dataclass(frozen=True)
class Gguf:
    """How files in GGUF, the format of llama.cpp, hold models of the family: what does not follow from its slots.

    Attributes:
        architecture: ``general.architecture``. A card with experts is for files with experts.
        neighbours: Whether outputs of the projections of queries and keys that RoPE rotates together are neighbours in the file, and
            halves of a head apart in Hugging Face's.
        words: Names of pre-tokenizers (``tokenizer.ggml.pre``) -> the regular expression that splits text into words; empty = that of
            byte-level BPE itself.
        whole_words: Of these names, those where a word that is a token is not merged of parts, and a text begins with bos where the
            metadata do not say.
        by_wavelength: ``rope_type`` in config.json of frequencies that GGUF has as a tensor; empty = the family has none.
        names: Name of a row of the card -> what its tensor is called in a layer, or outside of layers, for rows without a slot.
        sizes: Fields of the card -> keys of metadata after the architecture, for sizes that the family has besides the common ones.
        implied: Fields of the card that no key of the metadata has, or a function of the metadata, by their keys after the
            architecture, that gives them.
        by_head: Whether a packed projection has the query, key and value of each head together in Hugging Face's files, and all
            queries, then all keys and all values in GGUF.
        rotated: Share of a head that RoPE rotates.
        written: Whether the family's models are written as GGUF, besides being read.
    """

    architecture: str
    neighbours: bool = False
    words: Mapping[str, str] = field(default_factory=dict)
    whole_words: tuple[str, ...] = ()
    by_wavelength: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, str] = field(default_factory=dict)
    implied: Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]] = field(default_factory=dict)
    by_head: bool = False
    rotated: float = 1.0
    written: bool = False


@dataclass(frozen=True)
class Family:
    """The card of a model family. Every attribute after ``modeling`` has a default, so older cards stay valid.

    Attributes:
        name: Name on the command line and of the entry point.
        architectures: Values of ``architectures`` in config.json that belong to the family.
        params: The table of tensors.
        settings: The fields of config.json that the model depends on.
        sizes: Published checkpoints, and ``tiny`` for tests.
        modeling: ``"package.module:Class"``; the class is called with ``Dims`` and returns the model.
        paddle_prefix: Prefix of names in the model's state dict.
        torch_prefix: Prefix of names in torch checkpoints.
        model_type: ``model_type`` written into config.json.
        norm: Kernel of the normalization, one of ``slots.NORMS``.
        activation: Kernel of the feed-forward's activation, one of ``slots.ACTIVATIONS``.
        position: Kernel of the position encoding, one of ``slots.POSITIONS``.
        moe: Routing; None = a dense family.
        prefixes: Further prefixes that torch checkpoints of some releases put before ``torch_prefix``; they are dropped.
        ignored_tensors: Patterns of tensors in torch files that are not weights (RoPE tables).
        tokens: Special tokens and rules that a family's own tokenizer code adds to its tokenizer files.
        chat_template: The published chat format as Jinja, used if ``family`` is selected as the template.
        prefix_cache: Whether prefix tuning may put virtual tokens into the KV cache.
        claims: Capability states that differ from what the table implies, by method.
        starter: Name of the recipe that ``finetune`` runs without a configuration file; empty = none.
        inert: Keys of config.json without effect on this family, besides those of ``inert_keys``.
        recognise: Whether a config.json with one of the architectures is this family's, if families share an architecture.
        paddlenlp: A function of dims: where PaddleNLP's files hold modules, a table for ``map_modules``; None = under the
            same names.
        paddlenlp_prefix: Prefix of names in PaddleNLP's files; None = ``paddle_prefix``.
        decoder: A function of dims: the fields of ``DecoderSpec`` that do not follow from slots; None = there are none.
        gguf: How GGUF files hold its models; None = they are not read.
        needs_api: Lowest hook API (major, minor) that the card requires.
    """

    name: str
    architectures: tuple[str, ...]
    params: tuple[Param, ...]
    settings: tuple[ConfigField, ...]
    sizes: Mapping[str, Size]
    modeling: str
    paddle_prefix: str = ""
    torch_prefix: str = ""
    model_type: str = ""
    norm: str = "rmsnorm"
    activation: str = "swiglu"
    position: str = "rope-neox"
    moe: Moe | None = None
    prefixes: tuple[str, ...] = ()
    ignored_tensors: tuple[str, ...] = ()
    tokens: TokenFacts = TokenFacts()
    chat_template: str = ""
    prefix_cache: bool = True
    claims: Mapping[str, State] = field(default_factory=dict)
    starter: str = ""
    inert: tuple[str, ...] = ()
    recognise: Callable[[Mapping[str, Any]], bool] | None = None
    paddlenlp: Callable[[Any], Mapping[str, Any]] | None = None
    paddlenlp_prefix: str | None = None
    decoder: Callable[[Any], Mapping[str, Any]] | None = None
    gguf: Gguf | None = None
    needs_api: tuple[int, int] = (0, 1)

    def claims_config(self, config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with this config.json belongs to the family."""
        ours = bool(set(self.architectures) & set(config["architectures"]))
        return ours and (self.recognise is None or self.recognise(config))

    def expand(self, dims: Mapping[str, Any]) -> list[Tensor]:
        """All tensors of a model of these dims, in the order of the table.

        Computed once for each ``Dims``.

        Raises:
            ValueError: Two rows have the same name, or a symbol has no value.
        """
        if not isinstance(dims, Dims):
            return self._table(dims)
        if dims not in self._tables:
            self._tables[dims] = self._table(dims)
        return list(self._tables[dims])

    @cached_property
    def _tables(self) -> dict[Dims, list[Tensor]]:
        return {}

    def _table(self, dims: Mapping[str, Any]) -> list[Tensor]:
        tensors = [tensor for param in self.params for tensor in self._expand(param, dims)]
        seen: set[str] = set()
        for tensor in tensors:
            if tensor.name in seen:
                raise ValueError(f"card {self.name!r} names the tensor {tensor.name} twice")
            seen.add(tensor.name)
        return tensors

    def count(self, dims: Mapping[str, Any]) -> int:
        """Number of parameters; a tied head counts once."""
        return sum(tensor.size for tensor in self.expand(dims))

    def dims_of(self, size: str, **changes: Any) -> Dims:
        """Dims of a size on the card.

        Raises:
            ConfigError: The card has no such size.
        """
        if size not in self.sizes:
            raise ConfigError(f"{self.name} has no size {size!r}; its card lists {', '.join(self.sizes)}")
        values = {**self.sizes[size].values, **changes}
        keys = {setting.name: setting.key or setting.name for setting in self.settings}
        return self.dims_from_config({keys.get(name, name): value for name, value in values.items()}, f"size {size}")

    def dims_from_config(self, config: Mapping[str, Any], where: str = "config.json") -> Dims:
        """Dims from the content of an HF ``config.json``.

        Raises:
            ConfigError: A required key is absent, a key is unknown, or a value is one that the family does not support.
        """
        known = frozenset(key for setting in self.settings for key in (setting.key, *setting.aliases)) | {*self.inert}
        unknown = unknown_keys(config, known)
        if "quantization_config" in unknown:
            raise ConfigError(
                f"{where}: {self.name} does not know quantization_config={config['quantization_config']!r} here: the model is "
                "quantized, and this needs the float model, which llmctl convert --to hf makes of it. llmctl generate and llmctl bench "
                "run the checkpoint itself"
            )
        if unknown:
            listed = ", ".join(f"{key}={config[key]!r}" for key in unknown)
            raise ConfigError(
                f"{where}: {self.name} does not know {listed}; ignoring a key could change the results. If it has no effect "
                "on what the model computes, remove it from the file, or train with model.ignore_config_keys: "
                f"[{', '.join(unknown)}]"
            )
        if idle := passed_over(config, known):
            listed = ", ".join(f"{key}={config[key]!r}" for key in idle)
            warnings.warn(
                f"{where}: {listed}: {self.name} has no such setting, and it is off", UserWarning, stacklevel=2
            )
        values: dict[str, Any] = {}
        symbols = self._symbols()
        for setting in self.settings:
            values[setting.name] = setting.read(config, values, symbols, self.name, where)
        check_together(values, self.position, where)
        parts = {name: values[name] for name in PLACEHOLDERS.values() if isinstance(values.get(name), int)}
        if prod(parts.values()) > MODEL_PARTS:
            listed = " x ".join(f"{name}={value}" for name, value in parts.items())
            raise ConfigError(f"{where}: {listed} are more than {MODEL_PARTS:,} parts of a model; is the file damaged?")
        return Dims(**values)

    def config_from_dims(self, dims: Mapping[str, Any]) -> dict[str, Any]:
        """The content of ``config.json`` for a new model of these dims."""
        config: dict[str, Any] = {"architectures": list(self.architectures[:1]), "model_type": self.model_type}
        config.update({s.key: dims[s.name] for s in self.settings if s.key})
        return config

    def without_keys(self, config: Mapping[str, Any], names: Sequence[str], where: str) -> dict[str, Any]:
        """A config.json without keys that the user ignores; raises as ``inert_keys.without_keys``."""
        fields = frozenset(setting.key for setting in self.settings if setting.key)
        return without_keys(config, names, fields, self.name, where)

    def recorded(self, config: Mapping[str, Any], dims: Mapping[str, Any]) -> dict[str, Any]:
        """The ``recorded`` fields that a config.json lacks: what its other keys imply, to be written into a saved model."""
        return {s.key: dims[s.name] for s in self.settings if s.recorded and config.get(s.key) is None}

    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the table: equal hashes mean equal tensors, names and layouts."""
        derived = tuple(s.derive if isinstance(s.derive, str) else s.derive.__qualname__ for s in self.settings)
        names = self.name, self.architectures, self.paddle_prefix, self.torch_prefix
        params, settings = (tuple(map(_Hashed, rows)) for rows in (self.params, self.settings))
        return hashlib.sha256(repr((*names, params, settings, derived)).encode()).hexdigest()[:16]

    def _symbols(self) -> frozenset[str]:
        """Fields that sizes are computed from."""
        derived = (s.derive for s in self.settings if isinstance(s.derive, str))
        shapes = (axis.symbols for param in self.params for axis in param.axes)
        return frozenset().union(PLACEHOLDERS.values(), re.findall(r"[a-z]\w*", " ".join(derived)), *shapes)

    def _expand(self, param: Param, dims: Mapping[str, Any]) -> Iterator[Tensor]:
        indexed = [name for name in PLACEHOLDERS if "{" + name + "}" in param.name]
        shape = tuple(axis.size(dims) for axis in param.axes)
        kind = param.resolved_kind
        for indices in itertools.product(*(range(int(dims[PLACEHOLDERS[name]])) for name in indexed)):
            at = dict(zip(indexed, indices, strict=True))
            if not param.present(dims, at.get("layer")):
                continue
            yield Tensor(
                name=prefixed(param.name, self.paddle_prefix).format(**at),
                shape=shape,
                torch_name=prefixed(param.torch or param.name, self.torch_prefix).format(**at),
                transpose=len(shape) == 2 and kind in ("linear", "router") and param.torch_layout != "same",
                kind=kind,
                slot=param.slot,
                layer=at.get("layer"),
                expert=at.get("expert"),
                param=param,
            )


class _Hashed:
    """A row as it enters the hash of a card. Files store hashes, so the names in them do not follow those of classes."""

    def __init__(self, row: Any) -> None:
        self._row = row

    def __repr__(self) -> str:
        shown = ", ".join(f"{f.name}={getattr(self._row, f.name)!r}" for f in fields(self._row) if f.repr)
        return f"{HASHED_NAMES.get(type(self._row), type(self._row).__qualname__)}({shown})"


HASHED_NAMES: Mapping[type, str] = {Param: "Param", ConfigField: "Setting"}
"""Class of a row -> its name in the hash of a card."""


def prefixed(name: str, prefix: str) -> str:
    """A row's full name; a leading ``/`` means no prefix."""
    return name[1:] if name.startswith("/") else prefix + name
