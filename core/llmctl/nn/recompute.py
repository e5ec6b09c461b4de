"""Trading time for memory: layers that forget what they computed and compute it again for their gradient.

https://arxiv.org/abs/1604.06174. Randomness (dropout) is replayed and mixed precision restored, so results are those
without it to the last bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import paddle


def recompute_layers(model: paddle.nn.Layer, names: Iterable[str]) -> None:
    """Makes the named layers keep their input alone while the model trains, in place.

    Args:
        model: The model; its state dict stays as it is.
        names: Paths of layers whose first argument is the only one that a gradient goes to.

    Raises:
        ValueError: The model has no layer of that name.
    """
    layers = dict(model.named_sublayers())
    for name in names:
        if name not in layers:
            raise ValueError(f"the model has no layer {name!r}")
        layers[name].forward = _forgetful(layers[name], layers[name].forward)


def _forgetful(layer: paddle.nn.Layer, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: paddle.Tensor, *args: Any) -> paddle.Tensor:
        if not layer.training or not paddle.is_grad_enabled():
            return forward(x, *args)
        # Without a tensor that wants a gradient, what stands on frozen inputs would be cut off from the loss.
        anchor = paddle.zeros([1], x.dtype)
        anchor.stop_gradient = False
        return _Again.apply(x, anchor, lambda given: forward(given, *args))

    return run


class _Again(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x, anchor, run):
        ctx.run, ctx.random, ctx.casting, ctx.wanted = run, paddle.get_rng_state(), _casting(), not x.stop_gradient
        ctx.save_for_backward(x, anchor)
        return run(x)

    @staticmethod
    def backward(ctx, grad):
        x, anchor = ctx.saved_tensor()
        x = x.detach()
        x.stop_gradient = not ctx.wanted
        now = paddle.get_rng_state()
        paddle.set_rng_state(ctx.random)
        with paddle.enable_grad(), _cast(*ctx.casting):
            y = ctx.run(x)
        paddle.set_rng_state(now)
        paddle.autograd.backward([y], [grad])
        return x.grad if ctx.wanted else None, paddle.zeros_like(anchor)


def _casting() -> tuple[Any, ...]:
    """Mixed precision as it is now; a backward pass runs outside of the context that set it."""
    tracer = paddle.base.framework._dygraph_tracer()
    return tracer._amp_level, tracer._amp_dtype, tracer._get_amp_op_list()


@contextlib.contextmanager
def _cast(level: Any, dtype: str, lists: tuple[Any, Any]) -> Iterator[None]:
    """A context with mixed precision as ``_casting`` told it."""
    tracer, before = paddle.base.framework._dygraph_tracer(), _casting()
    tracer._amp_level, tracer._amp_dtype = level, dtype
    tracer._set_amp_op_list(*lists)
    try:
        yield
    finally:
        tracer._amp_level, tracer._amp_dtype = before[:2]
        tracer._set_amp_op_list(*before[2])
