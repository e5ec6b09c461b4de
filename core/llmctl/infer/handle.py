"""Engines for a model that was checked but not loaded: what its tokenizer and prompts need, and how it is loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from llmctl.card.rope import context_length
from llmctl.errors import ConfigError, UnsupportedError
from llmctl.infer.backend import Backend, BatchBackend, EngineBackend
from llmctl.infer.model_source import ModelSource
from llmctl.infer.options import EngineOptions
from llmctl.io.progress import waiting
from llmctl.runtime import operators

if TYPE_CHECKING:
    from llmctl.adapters.folder import OpenedAdapter
    from llmctl.card.decoder_spec import PrefixLM
    from llmctl.card.dims import Dims
    from llmctl.card.family import Family
    from llmctl.card.tokens import Wording
    from llmctl.infer.eager.exported import Exported
    from llmctl.infer.packed.model import PackedAdapter, PackedModel
    from llmctl.infer.sampling.defaults import SamplingDefaults
    from llmctl.tokenizers import Tokenizer

UNLIMITED = 8192
"""Tokens of a sequence of any length, where the model has no limit."""


class EndTokens(Protocol):
    """What an engine needs of a tokenizer."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""

    @property
    def pad_id(self) -> int:
        """Fills rows."""


@dataclass(frozen=True, kw_only=True)
class LoadedEngine:
    """An engine in memory.

    Attributes:
        engine: ``dynamic``, ``static`` or ``fused``.
        backend: Answers requests.
        max_positions: Maximum number of tokens of prompt and answer; 0 = no limit.
        notes: Lines for the user: why this engine computes, and what would make it faster.
    """

    engine: str
    backend: Backend
    max_positions: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EngineHandle(ABC):
    """An engine for a model that was checked, not loaded.

    Attributes:
        engine: ``dynamic``, ``static`` or ``fused``.
        options: As they were given.
        wording: What the tokenizer and its chat template need to know of the family.
        tokenizer_folder: Folder of the tokenizer.
        vocab: Rows of the embedding.
        adapters: Names of adapters that requests choose among; a request gives the index.
        prefix_lm: Tokens that every prompt needs, of a family that reads prompts in both directions, where they are known.
        causal: Whether tokens depend only on those before them.
        positions: Maximum number of tokens of prompt and answer together, before the engine is loaded; 0 = any.
        model_folder: Folder of the model; for an adapter, that of its base.
        adapter_folder: Folder of the adapter for every prompt; None = there is none.
        notes: Lines for the user: why not the fused engine.
    """

    engine: ClassVar[str]
    options: EngineOptions
    wording: Family | Wording
    tokenizer_folder: Path
    vocab: int
    adapters: tuple[str, ...] = ()
    prefix_lm: PrefixLM | None = None
    causal: bool = True
    positions: int = 0
    model_folder: Path | None = None
    adapter_folder: Path | None = None
    notes: tuple[str, ...] = ()

    @abstractmethod
    def load(self, tokenizer: EndTokens, lengths: Sequence[int | None]) -> LoadedEngine:
        """The engine in memory.

        Args:
            tokenizer: The model's.
            lengths: Tokens of prompt and answer of each request that will be made, at most; None = as many as the model allows.
                The KV cache is made for them.

        Raises:
            LlmctlError: The weights cannot be read, or the KV cache does not fit the memory.
        """

    def pack_adapter(self, name: str, folder: Path) -> PackedAdapter:
        """An adapter in a folder, for a loaded engine.

        Args:
            name: What requests call it.
            folder: The adapter.

        Raises:
            LlmctlError: It was trained on another model, or the engine takes none.
        """
        raise UnsupportedError("adapters need the fused engine")

    def tokenizer(self, chat_template: str = "auto") -> Tokenizer:
        """The model's tokenizer.

        Args:
            chat_template: As for ``tokenizers.load``.

        Raises:
            TokenizerError: There is none, or it does not fit the model.
        """
        from llmctl import tokenizers

        tokenizer = tokenizers.load(self.tokenizer_folder, chat_template, self.wording)
        tokenizers.check_fits(tokenizer, self.vocab, self.tokenizer_folder)
        return tokenizer

    def sampling_defaults(self) -> SamplingDefaults:
        """What the generation_config.json of adapter or model says.

        Raises:
            FileError: It is not valid JSON.
        """
        from llmctl.infer.sampling.defaults import read_defaults

        return read_defaults(self.tokenizer_folder, self.model_folder or self.tokenizer_folder)

    def _batches(self, model: Any, tokenizer: EndTokens) -> BatchBackend:
        options = self.options
        rows = options.rows(self.engine)
        return BatchBackend(model, tokenizer.eos_ids, tokenizer.pad_id, rows, not options.no_cache)


@dataclass(frozen=True, kw_only=True)
class StaticHandle(EngineHandle):
    """An exported program.

    Attributes:
        folder: Its folder.
        exported: What its ``export.json`` says.
    """

    engine: ClassVar[str] = "static"
    folder: Path
    exported: Exported

    def load(self, tokenizer: EndTokens, lengths: Sequence[int | None]) -> LoadedEngine:
        """As ``EngineHandle``."""
        from llmctl import runtime

        with waiting("importing paddle"):
            runtime.import_paddle(self.options.spell("engine", self.engine))
        from llmctl.infer.eager.program import StaticModel

        with waiting("loading the program"):
            backend = self._batches(StaticModel(self.folder, self.exported), tokenizer)
        return LoadedEngine(engine=self.engine, backend=backend, max_positions=self.exported.max_positions)


@dataclass(frozen=True, kw_only=True)
class DynamicHandle(EngineHandle):
    """The family's paddle model.

    Attributes:
        source: The model.
    """

    engine: ClassVar[str] = "dynamic"
    source: ModelSource

    def load(self, tokenizer: EndTokens, lengths: Sequence[int | None]) -> LoadedEngine:
        """As ``EngineHandle``."""
        from llmctl import runtime

        with waiting("importing paddle"):
            runtime.import_paddle(self.options.spell("engine", self.engine))
        from llmctl.infer.eager.layer import max_positions

        missing = operators.note()
        layer = self.source.layer()
        return LoadedEngine(
            engine=self.engine, backend=self._batches(layer, tokenizer),
            max_positions=max_positions(layer, self.source.dims), notes=(missing,) if missing else (),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FusedHandle(EngineHandle):
    """The fused engine over weights that are packed while they are loaded.

    Attributes:
        source: The model.
        named: The adapters by name.
        max_stable_length: Longest sequence for which the model's RoPE frequencies are valid; None = any.
    """

    engine: ClassVar[str] = "fused"
    source: ModelSource
    named: Mapping[str, OpenedAdapter] = field(default_factory=dict)
    max_stable_length: int | None = None

    def load(self, tokenizer: EndTokens, lengths: Sequence[int | None]) -> LoadedEngine:
        """As ``EngineHandle``; where ``auto`` chose the engine and requests may outgrow its RoPE frequencies, the layer."""
        from llmctl.infer.loader import Packing, packed_model

        stable, options = self.max_stable_length, self.options
        longest = max((length for length in lengths if length is not None), default=0)
        if options.engine == "auto" and stable is not None and longest > stable:
            reason = f"prompt and answer may pass {stable} tokens, and the model's RoPE depends on the length then"
            options.refuse_without_fused(reason)
            return self._layer(tokenizer, lengths, reason)
        packing = Packing(kind=options.weights or "", group=options.group)
        source = self.source
        model = packed_model(
            source.folder, source.plugin, source.dims, packing, source.adapted, self.named, source.scheme
        )
        default = len(self.named) if len(model.adapters) > len(self.named) else -1
        return load_engine(model, source.dims, tokenizer, lengths, options, default)

    def pack_adapter(self, name: str, folder: Path) -> PackedAdapter:
        """As ``EngineHandle``."""
        from llmctl.adapters.folder import open_adapter
        from llmctl.infer.loader import packed_adapter

        source = self.source
        opened = open_adapter(folder, source.folder, source.plugin.card.name, self.options.allow_other_base)
        return packed_adapter(name, opened, source.plugin, source.dims)

    def _layer(self, tokenizer: EndTokens, lengths: Sequence[int | None], reason: str) -> LoadedEngine:
        handle = DynamicHandle(
            options=self.options, wording=self.wording, tokenizer_folder=self.tokenizer_folder, vocab=self.vocab,
            positions=self.positions, model_folder=self.model_folder, source=self.source,
        )  # fmt: skip
        loaded = handle.load(tokenizer, lengths)
        return LoadedEngine(
            engine=loaded.engine, backend=loaded.backend, max_positions=loaded.max_positions,
            notes=(f"engine: dynamic ({reason})", *loaded.notes),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PackedHandle(EngineHandle):
    """The fused engine over a packed folder, which is mapped into memory.

    Attributes:
        model: The model with its adapters.
        dims: Its dims.
        default_adapter: Index of the adapter of requests that name none; -1 = none.
    """

    engine: ClassVar[str] = "fused"
    model: PackedModel
    dims: Dims
    default_adapter: int = -1

    def load(self, tokenizer: EndTokens, lengths: Sequence[int | None]) -> LoadedEngine:
        """As ``EngineHandle``."""
        return load_engine(self.model, self.dims, tokenizer, lengths, self.options, self.default_adapter)

    def pack_adapter(self, name: str, folder: Path) -> PackedAdapter:
        """As ``EngineHandle``."""
        from llmctl import plugins
        from llmctl.adapters.folder import open_adapter
        from llmctl.infer.loader import packed_adapter
        from llmctl.infer.packed.folder import read_header

        if self.model.prefix is not None:
            raise UnsupportedError("virtual tokens were packed with the model, which takes no other adapter")
        packed = self.tokenizer_folder if self.model_folder is None else self.model_folder
        base = read_header(packed)["base"]
        opened = open_adapter(folder, packed, self.wording.name, self.options.allow_other_base, base)
        return packed_adapter(name, opened, plugins.load(self.wording.name), self.dims)


def load_engine(
    model: PackedModel,
    dims: Dims,
    tokenizer: EndTokens,
    lengths: Sequence[int | None],
    options: EngineOptions,
    default_adapter: int = -1,
) -> LoadedEngine:
    """The fused engine over a packed model.

    Args:
        model: The model.
        dims: Its dims.
        tokenizer: As for ``EngineHandle.load``.
        lengths: As for ``EngineHandle.load``.
        options: Options of the engine.
        default_adapter: Index of the adapter of requests that name none; -1 = none.

    Raises:
        ConfigError: The KV cache does not fit the memory, or a beam search does not fit a batch.
    """
    from llmctl import runtime
    from llmctl.infer.executors import native
    from llmctl.infer.executors.base import BLOCK
    from llmctl.infer.loader import engine_of

    rows, width = options.rows("fused"), options.beams or 1
    if width > rows:
        raise ConfigError(
            f"{options.spell('beams', width)} is more than the {rows} rows of {options.spell('batch_size')}"
        )
    notes = ()
    if not native.available() and runtime.device() == "cpu":
        notes = (f"engine: fused, by paddle's operations ({no_kernels()})",)
    virtual = 0 if model.prefix is None else model.prefix.shape[2]
    stable = model.graph.rope.max_stable_length if model.graph.rope else None
    limit = stable or context_length(dims)
    limit = max(1, limit - virtual) if limit else 0
    asked = [limit or UNLIMITED if length is None else length for length in lengths for _ in range(width)]
    engine = engine_of(model, tokenizer.eos_ids, asked, options.kv, options.cache_memory, rows,
                       options.step_tokens or 512)  # fmt: skip
    if None in lengths:
        limit = min(limit or UNLIMITED, engine.statistics().blocks * BLOCK - virtual - BLOCK)
    backend = EngineBackend(engine, 2 * rows, default_adapter)
    return LoadedEngine(engine="fused", backend=backend, max_positions=limit, notes=notes)


def no_kernels() -> str:
    """Why there are no compiled kernels. If paddle-llmctl-ops is not installed, this counts as the one notice of the process."""
    from llmctl.infer.executors import native

    operators.note()
    return f"there are no compiled kernels: {native.missing()}"
