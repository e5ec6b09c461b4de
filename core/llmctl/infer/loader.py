"""From a model folder to the fused engine: weights packed at load, or mapped from a packed folder. Paddle is imported only on a
GPU, or without compiled kernels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.adapters.prefix import Prefix
from llmctl.errors import ConfigError, UnsupportedError
from llmctl.infer.engine.engine import Engine
from llmctl.infer.engine.kv_budget import blocks_for
from llmctl.infer.engine.limits import step_tokens_for
from llmctl.infer.executors.base import BLOCK, Executor
from llmctl.infer.options import default_kv
from llmctl.infer.packed.model import PackedAdapter, PackedModel
from llmctl.runtime.memory import free_memory

if TYPE_CHECKING:
    from llmctl.adapters.folder import OpenedAdapter
    from llmctl.card.dims import Dims
    from llmctl.plugins import Plugin
    from llmctl.quant.formats.scheme import Scheme

SHARE = 0.5
"""Share of the free memory that the KV cache takes at most by default."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Type of the layers' packed weights.

    Attributes:
        kind: One of ``packed.linear.KINDS``; empty = as in the checkpoint: bfloat16 or float16, else float32.
        group: Inputs that share a scale; None = the kind's default.
    """

    kind: str = ""
    group: int | None = None


def packed_model(
    folder: Path,
    plugin: Plugin,
    dims: Dims,
    packing: Packing,
    adapted: OpenedAdapter | None = None,
    named: Mapping[str, OpenedAdapter] | None = None,
    scheme: Scheme | None = None,
) -> PackedModel:
    """The packed model of a checkpoint.

    Args:
        folder: The checkpoint.
        plugin: Its family.
        dims: Its dims.
        packing: Type of the packed weights.
        adapted: An adapter that is merged into the weights, or virtual tokens before every sequence. Over codes it is the last
            of the model's adapters, unmerged.
        named: Adapters that requests choose among, in order; trained on a base that was not quantized.
        scheme: How the checkpoint is quantized; None = it holds floats. Its codes are packed as they are, and floats of 8 or 4 bits as
            ``packing`` says or as 8-bit codes.

    Raises:
        LlmctlError: The family has no fused path, or tensors do not fit the card.
    """
    from dataclasses import replace

    from llmctl.checkpoint.convert import open_source
    from llmctl.infer.packed import adapters as packed_adapters
    from llmctl.infer.packed import pack as packer

    graph = packer.graph_of(plugin, dims)
    merges = adapted is not None and bool(adapted.quantized)
    if scheme is not None and not (scheme.floats and merges):
        model = _with_stored_codes(folder, plugin, dims, packing, scheme, adapted)
        return add_adapters(model, plugin, dims, adapted.low_rank if adapted and adapted.own else adapted, named)
    state: Mapping[str, Any] = (adapted.source() if adapted else open_source(folder, plugin, dims)).state
    kind = packing.kind or _stored_kind(state, graph)
    prefix = None
    if adapted is not None and isinstance(adapted.adapter, Prefix):
        prefix = packed_adapters.pack_prefix(adapted.adapter, graph)
    elif adapted is not None:
        state = packed_adapters.merged_state(state, adapted)
    model = packer.pack(graph, packer.RoundToNearest(packer.state_of(state, graph), kind, packing.group))
    widths = packed_adapters.widths_of(plugin, dims)
    adapters = [_adapter(name, opened, graph, widths) for name, opened in (named or {}).items()]
    return replace(model, prefix=prefix, adapters=adapters)


def add_adapters(
    model: PackedModel,
    plugin: Plugin,
    dims: Dims,
    adapted: OpenedAdapter | None = None,
    named: Mapping[str, OpenedAdapter] | None = None,
) -> PackedModel:
    """A packed model with adapters that are applied at run time, unmerged.

    Args:
        model: The model.
        plugin: Its family.
        dims: Its dims.
        adapted: An adapter for every request, which becomes the last of the model's; or virtual tokens.
        named: Adapters that requests choose among, in order, after those that the model has.

    Raises:
        LlmctlError: An adapter has to be merged, or the model has virtual tokens or an adapter of this name already.
    """
    from dataclasses import replace

    from llmctl.infer.packed import adapters as packed_adapters

    given = {} if named is None else dict(named)
    if model.prefix is not None and (adapted or given):
        raise UnsupportedError(
            "virtual tokens were packed with the model, which takes no other adapter; pack the model without them"
        )
    if taken := sorted({adapter.name for adapter in model.adapters} & set(given)):
        raise ConfigError(f"an adapter named {taken[0]} was packed with the model; choose another name")
    if adapted is not None and isinstance(adapted.adapter, Prefix):
        prefix = packed_adapters.pack_prefix(adapted.adapter, model.graph)
        return replace(model, prefix=packed_adapters.fold_prefix(prefix, model))
    if adapted is not None:
        given[str(adapted.folder)] = adapted
    widths = packed_adapters.widths_of(plugin, dims)
    new = [_adapter(name, opened, model.graph, widths) for name, opened in given.items()]
    folded = [packed_adapters.fold_adapter(adapter, model) for adapter in new] if model.folds else new
    return replace(model, adapters=[*model.adapters, *folded])


def packed_adapter(name: str, opened: OpenedAdapter, plugin: Plugin, dims: Dims) -> PackedAdapter:
    """An adapter for packed weights of a model, unmerged.

    Args:
        name: What requests call it.
        opened: The adapter.
        plugin: The model's family.
        dims: Its dims.

    Raises:
        LlmctlError: It has to be merged, or does not fit.
    """
    from llmctl.infer.packed import adapters as packed_adapters
    from llmctl.infer.packed import pack as packer

    found: PackedAdapter = _adapter(
        name, opened, packer.graph_of(plugin, dims), packed_adapters.widths_of(plugin, dims)
    )
    return found


def executor_of(model: PackedModel, kv: str | None = None, step_tokens: int = 512) -> Executor:
    """The executor for this machine: paddle on a GPU, else the compiled kernels, or paddle's operations without them.

    Args:
        model: The model.
        kv: Type of the KV cache, one of ``options.KV``; None = as ``options.default_kv`` says. A GPU keeps keys and values in the type that it
            computes in, or as int8.
        step_tokens: Maximum number of tokens of a step.
    """
    from llmctl import runtime
    from llmctl.infer.executors import native

    kv = kv or default_kv(len(model.graph.layers), model.graph.kv_heads, model.graph.head_dim)
    on_gpu = runtime.device() == "gpu"
    if native.available() and not on_gpu:
        return native.NativeExecutor(model, step_tokens, kv)
    runtime.import_paddle("the fused engine on a GPU or without compiled kernels")
    from llmctl.infer.executors.paddle import PaddleExecutor

    if on_gpu:
        return PaddleExecutor(model, "bfloat16", "int8" if kv == "int8" else None)
    return PaddleExecutor(model, kv=kv)


def engine_of(
    model: PackedModel,
    end_ids: Collection[int],
    lengths: Sequence[int],
    kv: str | None = None,
    memory: str | None = None,
    rows: int = 64,
    enough: int = 512,
) -> Engine:
    """An engine with a KV cache for the requests that will be made.

    Args:
        model: The model.
        end_ids: Tokens that end an answer.
        lengths: Tokens of prompt and answer of each request, at most.
        kv: As for ``executor_of``.
        memory: Limit of the cache, as for ``kv_budget.blocks_for``; None = what the requests need, up to half of the free memory.
        rows: Maximum number of sequences that run together.
        enough: Tokens of a step, as for ``limits.step_tokens_for``.

    Raises:
        ConfigError: The cache does not fit the memory, or not even one sequence fits the cache.
    """
    step_tokens = step_tokens_for(model.graph, rows, enough)
    executor = executor_of(model, kv, step_tokens)
    virtual = 0 if model.prefix is None else model.prefix.shape[2]
    if memory is None:
        longest = sorted(lengths, reverse=True)[:rows]
        needed = sum(-(-(virtual + length) // BLOCK) + 1 for length in longest) + -(-virtual // BLOCK) + 1
        blocks = max(1, min(needed, int(free_memory() * SHARE) // executor.block_bytes))
    else:
        blocks = blocks_for(memory, executor.block_bytes, virtual + BLOCK)
    try:
        return Engine(
            executor, model.graph, blocks=blocks, end_ids=end_ids, prefix=model.prefix, adapters=len(model.adapters),
            step_tokens=step_tokens, most_rows=rows,
        )  # fmt: skip
    except (MemoryError, OverflowError):
        raise ConfigError(
            f"this machine has no room for a cache of {blocks * executor.block_bytes} bytes; give it less"
        ) from None


def _with_stored_codes(
    folder: Path, plugin: Plugin, dims: Dims, packing: Packing, scheme: Scheme, adapted: OpenedAdapter | None
) -> PackedModel:
    """The packed model of a quantized checkpoint, with the tensors that an adapter has in place of its own."""
    from llmctl.checkpoint.convert import open_source
    from llmctl.checkpoint.quantized import open_quantized
    from llmctl.infer.packed import pack as packer
    from llmctl.infer.packed.stored_codes import StoredCodes

    given = packing.kind or packing.group is not None
    if given and not scheme.floats:
        raise ConfigError(
            f"{folder} is quantized already ({scheme.method}, {scheme.bits} bits), and its codes are used as they are; leave out "
            "the type and group of the weights, or give the float model"
        )
    graph = packer.graph_of(plugin, dims)
    if graph.unit_head and not scheme.floats:
        raise UnsupportedError(
            f"{folder} is quantized ({scheme.method}), and {plugin.card.name} normalizes its head, which is only supported for float "
            "models"
        )
    if adapted is not None:
        state = adapted.source().state
    else:
        names = {tensor.torch_name for tensor in plugin.card.expand(dims)}
        state = open_source(folder, plugin, dims, open_quantized(folder, scheme, names)).state
    state = packer.state_of(state, graph)
    return packer.pack(
        graph, packer.RoundToNearest(state, packing.kind or "float32", packing.group) if given else StoredCodes(state)
    )


def _stored_kind(state: Mapping[str, Any], graph: Any) -> str:
    """The kind that holds the layers' weights exactly."""
    names = [name for slots in graph.layers for slot in ("qkv", "out", "ffn1", "ffn2") for name in slots[slot]]
    kinds = {state[name].dtype for name in names}
    return kinds.pop() if kinds in ({"bfloat16"}, {"float16"}) else "float32"


def _adapter(name: str, opened: OpenedAdapter, graph: Any, widths: Mapping[str, int]) -> Any:
    from llmctl.infer.packed import adapters as packed_adapters

    if isinstance(opened.adapter, Prefix):
        raise UnsupportedError(
            f"the adapter {name} is virtual tokens, which go before every sequence; leave out the name"
        )
    if opened.quantized:
        raise UnsupportedError(
            f"the adapter {name} was trained on a base in {opened.quantized}, so it has to be merged into the weights: give it "
            "without a name on the model's own folder, or pack both together: llmctl export --engine fused --adapter FOLDER"
        )
    opened.check_low_rank(name)
    return packed_adapters.pack_adapter(opened.adapter, graph, widths, name)
