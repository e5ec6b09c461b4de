"""Gradient checkpointing: layers keep only their input and recompute activations in the backward pass.

https://arxiv.org/abs/1604.06174. The random state (dropout) and autocast are restored for recomputation, so that results
are bit-identical.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import paddle


def recompute_layers(model: paddle.nn.Layer, names: Iterable[str]) -> None:
    """Makes the named layers recompute their activations in training, in place.

    Args:
        model: The model; its state dict does not change.
        names: Paths of layers; only their first argument receives a gradient.

    Raises:
        ValueError: The model has no layer of that name.
    """
    layers = dict(model.named_sublayers())
    for name in names:
        if name not in layers:
            raise ValueError(f"the model has no layer {name!r}")
        layers[name].forward = _recomputing(layers[name], layers[name].forward)


def _recomputing(layer: paddle.nn.Layer, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: paddle.Tensor, *args: Any) -> paddle.Tensor:
        if not layer.training or not paddle.is_grad_enabled():
            return forward(x, *args)
        # Without an input that requires a gradient, autograd would skip layers on frozen inputs.
        anchor = paddle.zeros([1], x.dtype)
        anchor.stop_gradient = False
        return _Recompute.apply(x, anchor, lambda x_again: forward(x_again, *args))

    return run


class _Recompute(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x, anchor, run):
        ctx.run, ctx.needs_grad = run, not x.stop_gradient
        ctx.random, ctx.autocast = paddle.get_rng_state(), _autocast()
        ctx.save_for_backward(x, anchor)
        return run(x)

    @staticmethod
    def backward(ctx, grad):
        x, anchor = ctx.saved_tensor()
        x = x.detach()
        x.stop_gradient = not ctx.needs_grad
        now = paddle.get_rng_state()
        paddle.set_rng_state(ctx.random)
        with paddle.enable_grad(), _autocast_as(*ctx.autocast):
            y = ctx.run(x)
        paddle.set_rng_state(now)
        paddle.autograd.backward([y], [grad])
        return x.grad if ctx.needs_grad else None, paddle.zeros_like(anchor)


def _autocast() -> tuple[Any, ...]:
    """The current autocast settings; a backward pass runs outside of the context that set them."""
    tracer = paddle.base.framework._dygraph_tracer()
    return tracer._amp_level, tracer._amp_dtype, tracer._get_amp_op_list()


@contextlib.contextmanager
def _autocast_as(level: Any, dtype: str, lists: tuple[Any, Any]) -> Iterator[None]:
    """A context with the settings that ``_autocast`` returned."""
    tracer, before = paddle.base.framework._dygraph_tracer(), _autocast()
    tracer._amp_level, tracer._amp_dtype = level, dtype
    tracer._set_amp_op_list(*lists)
    try:
        yield
    finally:
        tracer._amp_level, tracer._amp_dtype = before[:2]
        tracer._set_amp_op_list(*before[2])
