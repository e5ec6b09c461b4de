"""The executor on GPUs, and on a CPU without compiled kernels: a decoder step composed of paddle's operations.

``paddle_ops`` chooses the operations for a device, ``paged_cache`` holds keys and values, ``attention_metadata`` says what is
attended to. Shape suffixes: T tokens of the step, D hidden, N heads, K key-value heads, H head_dim, E experts, C experts per token,
L tokens whose logits are computed, S keys of all sequences, P positions of a prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
from paddle.nn import functional as F

from llmctl.card.decoder_spec import Rope
from llmctl.errors import ConfigError
from llmctl.infer.executors.attention_metadata import AttentionMetadata
from llmctl.infer.executors.base import Batch, Float, Int
from llmctl.infer.executors.paddle_ops import HALF, operations, tensor
from llmctl.infer.executors.paged_cache import PagedCache, slots
from llmctl.infer.packed import model as packed_model
from llmctl.infer.packed.model import PackedModel


class PaddleExecutor:
    """Computes steps as ``base.Executor``.

    Args:
        model: The model; its weights are unpacked, or quantized to paddle's own int8 codes if it has a kernel for them.
        dtype: Type to compute in; half-precision types need a GPU.
        kv: Type of the KV cache: None = ``dtype``, ``float16``, or ``int8`` with a scale for each position and head.
        device: As paddle names it; None = the current one.

    Raises:
        ConfigError: The device has no kernels for the type, or ``kv`` has a value that is not allowed.
    """

    def __init__(
        self, model: PackedModel, dtype: str = "float32", kv: str | None = None, device: str | None = None
    ) -> None:
        device = device or paddle.get_device()
        if dtype in HALF and not device.startswith("gpu"):
            raise ConfigError(f"dtype={dtype}: on {device} there are no kernels for half types; compute in float32")
        if kv not in (None, dtype, "float16", "int8"):
            raise ConfigError(f"kv={kv!r} must be {dtype}, float16 or int8")
        graph = model.graph
        self._model, self._graph, self._dtype = model, graph, dtype
        self._ops = operations(device, dtype)
        self._cache = PagedCache(len(model.layers), graph.kv_heads, graph.head_dim, dtype, kv or dtype)
        self._layers = [_Layer(layer, self._ops.linear, dtype) for layer in model.layers]
        self._head = self._ops.linear(model.head, dtype)
        self._projections = [
            None if part is None else self._ops.linear(part, dtype) for part in (model.project_in, model.project_out)
        ]
        self._embed_norm, self._final_norm = _norm(model.embed_norm, dtype), _norm(model.final_norm, dtype)
        self._adapters = [
            {key: (tensor(delta.a, dtype), tensor(delta.b, dtype)) for key, delta in adapter.deltas.items()}
            for adapter in model.adapters
        ]
        scales = graph.score_scales or (graph.head_dim**-0.5,) * len(model.layers)
        # ``attention`` divides by sqrt(head_dim) itself.
        self._query_scales = [scale * math.sqrt(graph.head_dim) for scale in scales]

    @property
    def vocab(self) -> int:
        """As ``Executor``."""
        return self._graph.vocab

    @property
    def max_tokens(self) -> int | None:
        """As ``Executor``."""
        return None

    @property
    def block_bytes(self) -> int:
        """As ``Executor``."""
        return self._cache.block_bytes

    @paddle.no_grad()
    def allocate(self, blocks: int) -> None:
        """As ``Executor``."""
        self._cache.allocate(blocks)

    @paddle.no_grad()
    def copy(self, source: int, target: int) -> None:
        """As ``Executor``."""
        self._cache.copy(source, target)

    @paddle.no_grad()
    def write_virtual_tokens(self, blocks: Int, prefix: Float) -> None:
        """As ``Executor``."""
        slot_P = paddle.to_tensor(slots(np.asarray(blocks), np.arange(prefix.shape[2])))
        for layer, (keys, values) in enumerate(prefix):
            self._cache.write(layer, slot_P, tensor(keys, self._dtype), tensor(values, self._dtype))

    @paddle.no_grad()
    def run(self, batch: Batch) -> Float:
        """As ``Executor``."""
        if not len(batch.logits_indices_L) and not len(batch.ids_T):
            return np.empty((0, self.vocab), np.float32)
        step = _StepTensors(batch, self._graph, self._dtype)
        x_TD = self._embed(batch)
        for index, layer in enumerate(self._layers):
            x_TD = self._block(index, layer, x_TD, step)
        if not len(batch.logits_indices_L):
            return np.empty((0, self.vocab), np.float32)
        x_LD = paddle.gather(x_TD, paddle.to_tensor(batch.logits_indices_L.astype(np.int64)))
        x_LD = self._normed(x_LD, self._final_norm)
        if self._projections[1] is not None:
            x_LD = self._projections[1](x_LD)
        return self._head(x_LD).astype("float32").numpy()

    def _embed(self, batch: Batch) -> paddle.Tensor:
        x_TD = self._normed(tensor(self._model.token_vectors(batch.ids_T), self._dtype), self._embed_norm)
        if self._projections[0] is not None:
            x_TD = self._projections[0](x_TD)
        if self._model.positions is not None:
            x_TD = x_TD + tensor(self._model.positions[batch.position_T], self._dtype)
        return x_TD

    def _block(self, index: int, layer: _Layer, x_TD: paddle.Tensor, step: _StepTensors) -> paddle.Tensor:
        x_TD = self._add(x_TD, layer.norm, lambda x: self._attention(index, layer, x, step))
        feed_forward = self._feed_forward if layer.router is None else self._experts
        return self._add(x_TD, layer.ffn_norm, lambda x: feed_forward(index, layer, x, step.adapter_T))

    def _add(self, x_TD: paddle.Tensor, norm: Any, sublayer: Callable[[paddle.Tensor], paddle.Tensor]) -> paddle.Tensor:
        """The residual plus the output of a sublayer, attention or feed-forward, with its norm."""
        graph = self._graph
        inner = x_TD if graph.norm_after else self._normed(x_TD, norm)
        residual = inner if graph.residual_after_norm else x_TD
        y_TD = (residual if graph.residual_scale == 1.0 else residual * graph.residual_scale) + sublayer(inner)
        return self._normed(y_TD, norm) if graph.norm_after else y_TD

    def _normed(self, x: paddle.Tensor, norm: Any) -> paddle.Tensor:
        return x if norm is None else getattr(self._ops, self._graph.norm)(x, *norm, self._graph.norm_eps)

    def _attention(self, index: int, layer: _Layer, x_TD: paddle.Tensor, step: _StepTensors) -> paddle.Tensor:
        graph = self._graph
        packed = self._linear(layer.qkv, (index, "qkv", 0), x_TD, step.adapter_T)
        heads = packed.reshape([packed.shape[0], -1, graph.head_dim])
        q, k, v = paddle.split(heads, [graph.heads, graph.kv_heads, graph.kv_heads], axis=1)
        if layer.q_norm is not None:
            q = self._ops.rmsnorm(q, layer.q_norm, None, graph.norm_eps)
            k = self._ops.rmsnorm(k, layer.k_norm, None, graph.norm_eps)
        if step.rope is not None:
            q, k = self._ops.apply_rope(q, *step.rope), self._ops.apply_rope(k, *step.rope)
        if step.query_scale_T11 is not None:
            q = q * step.query_scale_T11
        if not math.isclose(self._query_scales[index], 1.0):
            q = q * self._query_scales[index]
        self._cache.write(index, step.metadata.write_slot_T, k, v)
        attended = self._ops.attention(q, *self._cache.read(index, step.metadata.slot_S), step.metadata)
        return self._linear(layer.out, (index, "out", 0), attended, step.adapter_T)

    def _feed_forward(
        self, index: int, layer: _Layer, x_TD: paddle.Tensor, adapter_T: np.ndarray, expert: int = 0
    ) -> paddle.Tensor:
        wide = self._linear(layer.up[expert], (index, "up", expert), x_TD, adapter_T)
        wide = (
            self._ops.swiglu(wide) if self._graph.activation == "swiglu" else ACTIVATIONS[self._graph.activation](wide)
        )
        return self._linear(layer.down[expert], (index, "down", expert), wide, adapter_T)

    def _experts(self, index: int, layer: _Layer, x_TD: paddle.Tensor, adapter_T: np.ndarray) -> paddle.Tensor:
        """The weighted sum of the outputs of each token's top experts; each expert computes the tokens that are routed to it."""
        routing = self._graph.experts
        assert routing is not None, "a router belongs to a mixture of experts"
        scores_TE = paddle.matmul(x_TD.astype("float32"), layer.router)
        weight_TC, expert_TC = paddle.topk(F.softmax(scores_TE, axis=-1), routing.top_k, axis=-1)
        if routing.renormalize:
            weight_TC = weight_TC / weight_TC.sum(axis=-1, keepdim=True)
        expert = expert_TC.numpy().reshape(-1)
        order = np.argsort(expert, kind="stable")
        token = order // routing.top_k
        rows = paddle.gather(x_TD, paddle.to_tensor(token))
        counts = np.bincount(expert, minlength=routing.count)
        ends = np.cumsum(counts)
        outputs = [
            self._feed_forward(index, layer, rows[end - count : end], adapter_T[token[end - count : end]], expert)
            for expert, (count, end) in enumerate(zip(counts.tolist(), ends.tolist(), strict=True))
            if count
        ]
        inverse = np.argsort(order)
        routed = paddle.gather(paddle.concat(outputs), paddle.to_tensor(inverse))
        routed_TCD = routed.reshape([-1, routing.top_k, x_TD.shape[-1]])
        return paddle.matmul(weight_TC.astype(self._dtype).unsqueeze(1), routed_TCD).squeeze(1)

    def _linear(
        self, linear: Callable[[paddle.Tensor], paddle.Tensor], key: Any, x: paddle.Tensor, adapter_T: np.ndarray
    ) -> paddle.Tensor:
        """A linear layer, with the LoRA delta of each token's adapter."""
        y = linear(x)
        for adapter in np.unique(adapter_T[adapter_T >= 0]):
            if key in self._adapters[adapter]:
                a, b = self._adapters[adapter][key]
                index = paddle.to_tensor(np.flatnonzero(adapter_T == adapter))
                delta = paddle.matmul(paddle.matmul(paddle.gather(x, index), a), b)
                y = paddle.index_add(y, index, 0, delta)
        return y


class _Layer:
    """The tensors of a layer."""

    def __init__(self, layer: packed_model.Layer, linear: Callable[..., Any], dtype: str) -> None:
        self.norm, self.ffn_norm = _norm(layer.norm, dtype), _norm(layer.ffn_norm, dtype)
        self.qkv, self.out = linear(layer.qkv, dtype), linear(layer.out, dtype)
        self.up, self.down = ([linear(one, dtype) for one in part] for part in (layer.up, layer.down))
        self.q_norm, self.k_norm = tensor(layer.q_norm, dtype), tensor(layer.k_norm, dtype)
        self.router = None if layer.router is None else paddle.to_tensor(layer.router.T.copy())


class _StepTensors:
    """What all layers of a step share: attention metadata, the adapter of each token, RoPE cos and sin, the query scale."""

    def __init__(self, batch: Batch, graph: Any, dtype: str) -> None:
        self.metadata = AttentionMetadata(batch, graph.slopes)
        self.adapter_T = batch.adapter_R[batch.sequence_T]
        self.rope = None if graph.rope is None else _cos_sin(batch, graph.rope, dtype)
        base = graph.rope.log_base if graph.rope is not None else None
        self.query_scale_T11 = None
        if base is not None:
            factor_T = np.log(np.maximum(batch.kv_position_T + 1.0, base)) / math.log(base)
            self.query_scale_T11 = tensor(factor_T.astype(np.float32), dtype).reshape([-1, 1, 1])


def _cos_sin(batch: Batch, rope: Rope, dtype: str) -> tuple[paddle.Tensor, paddle.Tensor]:
    """cos and sin [T, rotary_dim/2] of each pair's angle, times the attention factor."""
    frequencies = np.asarray(rope.frequencies)
    angle = np.outer(batch.position_T, frequencies)
    if rope.pairs == "2d":
        assert batch.second_position_T is not None, "2-D RoPE needs second positions"
        angle = np.concatenate([angle, np.outer(batch.second_position_T, frequencies)], axis=1)
    cos, sin = (f(angle) * rope.attention_factor for f in (np.cos, np.sin))
    return tensor(cos.astype(np.float32), dtype), tensor(sin.astype(np.float32), dtype)


def _norm(norm: packed_model.Norm | None, dtype: str) -> tuple[Any, Any] | None:
    """Weight and bias of a norm; None = there is none."""
    return None if norm is None else (tensor(norm.weight, dtype), tensor(norm.bias, dtype))


ACTIVATIONS: dict[str, Callable[[paddle.Tensor], paddle.Tensor]] = {
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate=True),
    "relu": F.relu,
}
