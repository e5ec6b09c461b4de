"""Which engine runs a model folder: the one that was asked for, or the fastest that can."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.card.rope import context_length
from llmctl.checkpoint.locate import locate
from llmctl.errors import ConfigError, LlmctlError
from llmctl.infer.handle import DynamicHandle, EngineHandle, FusedHandle, PackedHandle, StaticHandle, no_kernels
from llmctl.infer.model_source import ModelSource, open_model
from llmctl.infer.options import EngineOptions

if TYPE_CHECKING:
    from llmctl.adapters.folder import OpenedAdapter
    from llmctl.card.decoder_spec import DecoderSpec
    from llmctl.card.dims import Dims


def open_backend(folder: Path, family: str = "auto", options: EngineOptions | None = None) -> EngineHandle:
    """The engine for a model folder, which is checked but not loaded.

    Args:
        folder: A checkpoint, an adapter that names its base, an exported program, or a packed folder; the output folder of a
            run; or a name on a hub.
        family: Name of a family, or ``"auto"`` for the one that the folder names.
        options: Options of the engine; None = the defaults.

    Raises:
        LlmctlError: The model cannot be opened, the engine cannot run it, or an option has no effect on it.
    """
    from llmctl.adapters.folder import is_adapter
    from llmctl.infer.eager import exported
    from llmctl.infer.packed.folder import is_packed

    options = options or EngineOptions()
    folder = locate(folder)
    if exported.is_exported(folder):
        return _static(folder, options)
    if is_packed(folder):
        return _packed(folder, options, options.single_adapter)
    if options.base and options.adapter is None and is_adapter(folder) and is_packed(locate(options.base)):
        return _packed(locate(options.base), options, folder)
    if options.engine == "static":
        raise ConfigError(
            f"{options.spell('engine', 'static')}: {folder} holds no exported program; make one: llmctl export {folder} "
            "--output FOLDER"
        )
    source = open_model(folder, family, options)
    if options.engine == "dynamic":
        options.refuse_fused_only("dynamic")
        return _dynamic(source, options)
    spec, reason = _fused_spec(source, options)
    if not reason:
        named = _named_adapters(options, folder, family)
        return FusedHandle(
            **_common(source, options, spec), adapters=tuple(named), source=source, named=named,
            max_stable_length=spec.rope.max_stable_length if spec and spec.rope else None,
        )  # fmt: skip
    options.refuse_without_fused(reason)
    return _dynamic(source, options, f"engine: dynamic ({reason})")


def _fused_spec(source: ModelSource, options: EngineOptions) -> tuple[DecoderSpec | None, str]:
    """What the fused engine would compute, and why it cannot; empty = it can."""
    from llmctl.infer.executors import native

    spec, reason = _spec_of(source)
    if options.no_cache:
        return spec, f"{options.spell('no_cache')} computes without the KV cache that it is built on"
    if not reason and options.engine == "auto" and not native.available():
        reason = f"{no_kernels()}; {options.spell('engine', 'fused')} runs it by paddle's operations"
    return spec, reason


def _spec_of(source: ModelSource) -> tuple[DecoderSpec | None, str]:
    """What the fused engine computes for a model; None and why not, where it cannot."""
    from llmctl.infer.packed.pack import graph_of

    try:
        return graph_of(source.plugin, source.dims), ""
    except LlmctlError as error:
        return None, str(error)


def _common(source: ModelSource, options: EngineOptions, spec: DecoderSpec | None) -> dict[str, Any]:
    return {
        "options": options, "wording": source.plugin.card, "tokenizer_folder": source.tokenizer_folder,
        "vocab": source.dims.vocab, "positions": _positions(source.dims, source.adapted), "model_folder": source.folder,
        "adapter_folder": source.adapted.folder if source.adapted else None,
        "prefix_lm": spec.prefix_lm if spec else None, "causal": spec is None or spec.prefix_lm is None,
    }  # fmt: skip


def _positions(dims: Dims, adapted: OpenedAdapter | None) -> int:
    """Tokens of prompt and answer that the model has positions for, besides virtual tokens; 0 = any."""
    from llmctl.adapters.prefix import Prefix

    limit = context_length(dims)
    virtual = adapted.adapter.tokens if adapted and isinstance(adapted.adapter, Prefix) else 0
    return max(1, limit - virtual) if limit else 0


def _dynamic(source: ModelSource, options: EngineOptions, *notes: str) -> DynamicHandle:
    return DynamicHandle(**_common(source, options, _spec_of(source)[0]), source=source, notes=notes)


def _static(folder: Path, options: EngineOptions) -> StaticHandle:
    from llmctl.infer.eager import exported

    if options.engine not in ("auto", "static"):
        raise ConfigError(
            f"{options.spell('engine', options.engine)}: {folder} holds an exported program; leave out "
            f"{options.spell('engine')}"
        )
    if options.adapter is not None or options.base or options.allow_other_base:
        raise ConfigError(
            f"{folder} is an exported program, which takes no adapter; export the model with its adapter instead"
        )
    options.refuse_fused_only("static")
    about = exported.read(folder)
    # Rows of a program's own are those of a model that looks for the end of its prompt.
    return StaticHandle(
        options=options, wording=about.wording, tokenizer_folder=folder, vocab=about.vocab, causal=not about.rows,
        folder=folder, exported=about, positions=about.max_positions,
    )  # fmt: skip


def _packed(folder: Path, options: EngineOptions, adapter: Path | None) -> PackedHandle:
    """The packed model in a folder.

    Args:
        folder: The folder.
        options: Options of the engine.
        adapter: The adapter for every prompt.
    """
    from llmctl import plugins
    from llmctl.adapters.folder import open_adapter, tokenizer_folder
    from llmctl.checkpoint.hf_config import read_config
    from llmctl.infer.eager.exported import HASHED
    from llmctl.infer.loader import add_adapters
    from llmctl.infer.packed.folder import open_packed, read_header

    _check_packed(folder, options, adapter)
    header = read_header(folder)
    packed = open_packed(folder, verify=header["bytes"] <= HASHED)
    family, base = header["family"], header["base"]
    plugin = plugins.load(family)
    dims = plugin.card.dims_from_config(read_config(folder), str(folder / "config.json"))
    named = _named_adapters(options, folder, family, base)
    single = open_adapter(adapter, folder, family, options.allow_other_base, base) if adapter else None
    before = len(packed.adapters)
    packed = add_adapters(packed, plugin, dims, single, named)
    # A low-rank adapter for every prompt has no name that requests may give; virtual tokens are no adapter of the list.
    default = before if single and len(packed.adapters) > before else -1
    return PackedHandle(
        options=options, wording=plugin.card, vocab=packed.graph.vocab, prefix_lm=packed.graph.prefix_lm, causal=packed.graph.prefix_lm is None,
        tokenizer_folder=tokenizer_folder(single.folder, folder) if single else folder,
        adapters=tuple(adapter.name for adapter in packed.adapters[: None if default < 0 else default]),
        model=packed, dims=dims, default_adapter=default, positions=_positions(dims, single), model_folder=folder,
        adapter_folder=single.folder if single else None,
    )  # fmt: skip


def _check_packed(folder: Path, options: EngineOptions, adapter: Path | None) -> None:
    if options.engine not in ("auto", "fused"):
        raise ConfigError(
            f"{options.spell('engine', options.engine)}: {folder} holds a packed model, which only the fused engine runs"
        )
    unused_base = options.base and (adapter is None or options.adapter is not None)
    if unused_base or (options.allow_other_base and adapter is None and not options.named_adapters):
        raise ConfigError(
            f"{options.spell('base')} and {options.spell('allow_other_base')} are for adapters; {folder} holds none"
        )
    if options.no_cache:
        raise ConfigError(f"{options.spell('no_cache')} has no effect with the fused engine; leave it out")
    for name in ("weights", "group"):
        if getattr(options, name) is not None:
            raise ConfigError(
                f"{options.spell(name)} has no effect on a packed model, whose weights are packed already"
            )


def _named_adapters(
    options: EngineOptions, folder: Path, family: str, record: Mapping[str, Any] | None = None
) -> dict[str, OpenedAdapter]:
    """The adapters by name, opened.

    Args:
        options: Options of the engine.
        folder: Their base.
        family: Its family.
        record: What the adapters' records are compared with, where the folder does not hold the tensors themselves.
    """
    from llmctl.adapters.folder import open_adapter

    opened = {
        name: open_adapter(adapter, folder, family, options.allow_other_base, record)
        for name, adapter in options.named_adapters.items()
    }
    for name, one in opened.items():
        one.check_low_rank(name)
    return opened
