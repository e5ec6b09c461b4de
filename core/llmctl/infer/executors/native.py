"""The executor on a CPU: one native call per step (``llmctl_ops.decoder``), without paddle.

The engine uses the kernels of ``paddle-llmctl-ops`` only through this module: ``available`` says whether there are any, ``missing``
why not. The logits of a sequence do not depend on what else is in the step, to the last bit: a row is computed the same way
whatever the number of rows, and keys are summed in spans that begin at fixed positions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llmctl.errors import OPERATORS_DISTRIBUTION, ConfigError
from llmctl.infer.executors.base import BLOCK, Batch, Float, Int
from llmctl.infer.executors.rope_cache import RopeCache
from llmctl.infer.packed.linear import LAYOUT, PackedLinear
from llmctl.infer.packed.model import Linear, LoraDelta, Norm, PackedAdapter, PackedModel
from llmctl.runtime import operators, process

try:
    from llmctl_ops import decoder, library, linear, sampling, structs
except ImportError as error:
    library = None
    FAILURE = (
        operators.MISSING if error.name == "llmctl_ops" else f"{OPERATORS_DISTRIBUTION} cannot be imported ({error})"
    )

EMBEDDINGS = {"float32": "float32", "uint16": "bfloat16", "float16": "float16"}
"""Type of an array of token embeddings -> kind of its values."""

CACHES = ("float16", "float32", "int8")


class NativeExecutor:
    """Computes steps as ``base.Executor``.

    Args:
        model: The model; its arrays are not copied.
        max_tokens: Maximum number of tokens of a step.
        kv: Type of the KV cache: ``float16``, ``float32``, or ``int8`` with a scale for each position and head.

    Raises:
        ConfigError: There are no compiled kernels, or an option has a value that is not allowed.
        ValueError: Arrays of the model do not fit its spec.
    """

    def __init__(self, model: PackedModel, max_tokens: int = 512, kv: str = "float32") -> None:
        if not available():
            raise ConfigError(
                f"the native engine needs the compiled kernels of paddle-llmctl-ops, and there are none: {missing()}"
            )
        if kv not in CACHES:
            raise ConfigError(f"kv={kv!r} must be one of {', '.join(CACHES)}")
        if max_tokens < 1:
            raise ConfigError(f"max_tokens={max_tokens} must be at least 1")
        self._spec, self._max_tokens = model.graph, max_tokens
        self.model, self._kv = model, kv
        owned = _Owned()
        described = _describe(model, kv, owned)
        self._decoder = decoder.Decoder(described, max_tokens, owned)
        self._rope = RopeCache(model.graph)
        self._logits = np.empty((0, model.graph.vocab), np.float32)
        self._step = structs.Step()

    @property
    def vocab(self) -> int:
        """As ``Executor``."""
        return self._spec.vocab

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens of a step."""
        return self._max_tokens

    @property
    def block_bytes(self) -> int:
        """As ``Executor``."""
        return self._decoder.block_bytes

    def with_adapters(self, adapters: Sequence[PackedAdapter]) -> NativeExecutor:
        """The executor of the same model with other adapters, and a cache of its own."""
        return NativeExecutor(replace(self.model, adapters=[*adapters]), self._max_tokens, self._kv)

    def allocate(self, blocks: int) -> None:
        """As ``Executor``."""
        self._decoder.allocate(blocks)

    def copy(self, source: int, target: int) -> None:
        """As ``Executor``."""
        self._decoder.copy(source, target)

    def write_virtual_tokens(self, blocks: Int, prefix: Float) -> None:
        """As ``Executor``."""
        self._decoder.put(blocks, prefix)

    def run(self, batch: Batch) -> Float:
        """As ``Executor``.

        Raises:
            ValueError: An index of the step is out of range of the model or the cache, or the step is too large.
        """
        count = len(batch.logits_indices_L)
        if not len(batch.ids_T):
            return self._logits[:0]
        step, held = self._step, _arrays(batch)
        for name, array in held.items():
            setattr(step, name, array.ctypes.data)
        step.tokens, step.logits_count = len(batch.ids_T), count
        step.sequences, step.max_blocks = held["block_tables"].shape
        self._rope.ensure(_last_position(batch), step.max_blocks * BLOCK)
        self._rope.fill(step)
        if count > len(self._logits):
            self._logits = np.empty((max(count, 2 * len(self._logits)), self.vocab), np.float32)
        step.logits = self._logits.ctypes.data
        self._decoder.step(step)
        return self._logits[:count]


def available() -> bool:
    """Whether there are compiled kernels.

    Raises:
        ConfigError: ``LLMCTL_OPS`` has a value that is not allowed.
    """
    return not missing()


def missing() -> str:
    """Why there are no compiled kernels; empty = there are some.

    Raises:
        ConfigError: ``LLMCTL_OPS`` or ``LLMCTL_THREADS`` has a value that is not allowed.
    """
    if library is None:
        return "LLMCTL_OPS=reference" if operators.turned_off() else FAILURE
    process.limit_kernels()
    try:
        found = library.load()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if found.handle is not None and linear.LAYOUT != LAYOUT:
        return f"{OPERATORS_DISTRIBUTION} reads packed weights of layout {linear.LAYOUT}, not {LAYOUT}; install one that fits llmctl"
    return "" if found.handle is not None else str(found.why)


def level() -> str:
    """Instruction set of the kernels, which must be available."""
    return str(library.load().level)


def sampler(vocab: int) -> Any:
    """``llmctl_ops.sampling.Sampler`` of a vocabulary; None if there are no kernels."""
    return sampling.Sampler(vocab) if available() else None


def product(x_TI: Float, packed: PackedLinear, bias_O: Float | None = None) -> Float:
    """As ``packed.linear.product``, by the kernels, which must be available."""
    return linear.product(x_TI, packed, bias_O)  # type: ignore[no-any-return]


def _last_position(batch: Batch) -> int:
    last = int(batch.position_T.max())
    return last if batch.second_position_T is None else max(last, int(batch.second_position_T.max()))


def _arrays(batch: Batch) -> dict[str, Int]:
    """The arrays of a step by field of ``structs.Step``.

    Raises:
        ValueError: Their lengths do not fit each other.
    """
    second = batch.position_T if batch.second_position_T is None else batch.second_position_T
    tokens = {
        "ids": batch.ids_T, "sequence": batch.sequence_T, "kv_position": batch.kv_position_T, "position": batch.position_T,
        "second_position": second, "attend_begin": batch.attend_begin_T, "attend_end": batch.attend_end_T,
    }  # fmt: skip
    others = {
        "block_tables": batch.block_tables_RM,
        "adapter": batch.adapter_R,
        "logits_indices": batch.logits_indices_L,
    }
    held = {name: np.ascontiguousarray(array, np.int32) for name, array in {**tokens, **others}.items()}
    if any(held[name].shape != held["ids"].shape or held[name].ndim != 1 for name in tokens):
        raise ValueError("the arrays of a step's tokens differ in length")
    tables, indices = held["block_tables"], held["logits_indices"]
    if tables.ndim != 2 or held["adapter"].shape != tables.shape[:1] or indices.ndim != 1:
        raise ValueError(
            "a step needs a block table and an adapter for each sequence, and a list of tokens whose logits are computed"
        )
    return held


class _Owned:
    """Keeps arrays and structures alive as long as there are pointers to them."""

    def __init__(self) -> None:
        self._kept: list[Any] = []

    def array(self, array: Any, shape: tuple[int, ...], what: str) -> int | None:
        """The address of a float32 array; None for none.

        Raises:
            ValueError: It has another shape.
        """
        if array is None:
            return None
        if array.shape != shape:
            raise ValueError(f"{what} is {list(array.shape)}, not {list(shape)}")
        kept = np.ascontiguousarray(array, np.float32)
        self._kept.append(kept)
        return int(kept.ctypes.data)

    def list(self, kind: type[ctypes.Structure], items: Sequence[ctypes.Structure]) -> int | None:
        """The address of an array of structures; None for no items."""
        if not items:
            return None
        kept = (kind * len(items))(*items)
        self._kept.append(kept)
        return ctypes.addressof(kept)

    def keep(self, thing: Any) -> None:
        """Keeps an object alive."""
        self._kept.append(thing)


def _describe(model: PackedModel, kv: str, owned: _Owned) -> structs.Model:
    spec = model.graph
    made = structs.Model()
    if isinstance(model.embed, PackedLinear):
        made.embed_linear = _linear(Linear(model.embed), spec.embed, spec.vocab, owned)
    else:
        if model.embed.shape != (spec.vocab, spec.embed) or model.embed.dtype.name not in EMBEDDINGS:
            raise ValueError(
                f"embed is {model.embed.dtype} {list(model.embed.shape)}, not [{spec.vocab}, {spec.embed}]"
            )
        embed = np.ascontiguousarray(model.embed)
        owned.keep(embed)
        made.embed, made.embed_kind = embed.ctypes.data, [*linear.KINDS].index(EMBEDDINGS[embed.dtype.name])
    if model.positions is not None:
        made.position_rows = len(model.positions)
        made.positions = owned.array(model.positions, (len(model.positions), spec.hidden), "positions")
    if spec.slopes:
        made.alibi_slopes = owned.array(np.asarray(spec.slopes, np.float32), (spec.heads,), "slopes")
    made.embed_norm = _norm(model.embed_norm, spec.embed, owned)
    made.final_norm = _norm(model.final_norm, spec.hidden, owned)
    made.project_in = _linear(model.project_in, spec.embed, spec.hidden, owned)
    made.project_out = _linear(model.project_out, spec.hidden, spec.embed, owned)
    made.head = _linear(model.head, spec.embed if model.project_out else spec.hidden, spec.vocab, owned)
    made.layer = owned.list(structs.Layer, [_layer(model, index, owned) for index in range(len(model.layers))])
    made.layers, made.hidden, made.heads, made.kv_heads = len(model.layers), spec.hidden, spec.heads, spec.kv_heads
    made.head_dim, made.ffn, made.vocab, made.embed_dim = spec.head_dim, spec.ffn, spec.vocab, spec.embed
    made.rotary_dim, made.rope_2d = (spec.rope.rotary_dim, spec.rope.pairs == "2d") if spec.rope else (0, 0)
    if spec.experts:
        made.experts, made.top_k, made.renormalize = spec.experts.count, spec.experts.top_k, spec.experts.renormalize
    made.adapters, made.eps, made.residual_scale = len(model.adapters), spec.norm_eps, spec.residual_scale
    made.layer_norm, made.activation = spec.norm == "layernorm", decoder.ACTIVATIONS.index(spec.activation)
    made.norm_after, made.residual_after_norm = spec.norm_after, spec.residual_after_norm
    made.cache_kind = decoder.CACHES.index(kv)
    return made


def _layer(model: PackedModel, index: int, owned: _Owned) -> structs.Layer:
    spec, layer = model.graph, model.layers[index]
    heads, count = (spec.heads + 2 * spec.kv_heads) * spec.head_dim, spec.experts.count if spec.experts else 1
    up = spec.ffn * (2 if spec.activation == "swiglu" else 1)
    if len(layer.up) != count or len(layer.down) != count or (layer.router is None) != (spec.experts is None):
        raise ValueError(f"layer {index} has {len(layer.up)} feed-forward layers, not {count} with a router if more")
    made = structs.Layer()
    made.norm, made.ffn_norm = (_norm(norm, spec.hidden, owned) for norm in (layer.norm, layer.ffn_norm))
    made.qkv = _linear(layer.qkv, spec.hidden, heads, owned)
    made.out = _linear(layer.out, spec.heads * spec.head_dim, spec.hidden, owned)
    made.up = owned.list(structs.Linear, [_linear(one, spec.hidden, up, owned) for one in layer.up])
    made.down = owned.list(structs.Linear, [_linear(one, spec.ffn, spec.hidden, owned) for one in layer.down])
    made.router = owned.array(layer.router, (count, spec.hidden), f"router of layer {index}")
    made.q_norm = owned.array(layer.q_norm, (spec.head_dim,), f"q_norm of layer {index}")
    made.k_norm = owned.array(layer.k_norm, (spec.head_dim,), f"k_norm of layer {index}")
    made.score_scale = spec.score_scales[index] if spec.score_scales else spec.head_dim**-0.5
    parts = {"qkv": (layer.qkv,), "out": (layer.out,), "up": layer.up, "down": layer.down}
    for name, linears in parts.items():
        setattr(made, f"{name}_lora", _lora_deltas(model, index, name, linears, owned))
    return made


def _norm(norm: Norm | None, width: int, owned: _Owned) -> structs.Norm:
    if norm is None:
        return structs.Norm()
    return structs.Norm(owned.array(norm.weight, (width,), "a norm"), owned.array(norm.bias, (width,), "a norm's bias"))


def _linear(layer: Linear | None, inputs: int, outputs: int, owned: _Owned) -> Any:
    if layer is None:
        return structs.Linear()
    weight = layer.weight
    if (weight.inputs, weight.outputs) != (inputs, outputs):
        raise ValueError(f"a linear is [{weight.inputs}, {weight.outputs}], not [{inputs}, {outputs}]")
    owned.keep(layer)
    parts = [linear.as_struct(part, bias) for part, bias in layer.parts]
    if len(parts) == 1:
        return parts[0]
    array = (structs.Linear * len(parts))(*parts)
    owned.keep(array)
    return linear.join(array)


def _lora_deltas(model: PackedModel, index: int, name: str, linears: Sequence[Linear], owned: _Owned) -> int | None:
    """A LoRA delta for each expert and adapter."""
    found = [adapter.deltas.get((index, name, e)) for e in range(len(linears)) for adapter in model.adapters]
    if not any(found):
        return None
    weights = [one.weight for one in linears for _ in model.adapters]
    return owned.list(
        structs.LoraDelta,
        [_lora_delta(delta, w.inputs, w.outputs, owned) for delta, w in zip(found, weights, strict=True)],
    )


def _lora_delta(delta: LoraDelta | None, inputs: int, outputs: int, owned: _Owned) -> structs.LoraDelta:
    if delta is None:
        return structs.LoraDelta()
    rank = delta.a.shape[1]
    if delta.a.shape != (inputs, rank) or delta.b.shape != (rank, outputs):
        raise ValueError(
            f"a LoRA delta is {list(delta.a.shape)} and {list(delta.b.shape)}; the linear is [{inputs}, {outputs}]"
        )
    a, b = (np.zeros((rows, -(-columns // 16) * 16), np.float32) for rows, columns in ((inputs, rank), (rank, outputs)))
    a[:, :rank], b[:, :outputs] = delta.a, delta.b
    return structs.LoraDelta(owned.array(a, a.shape, "a"), owned.array(b, b.shape, "b"), rank)
