"""The layers of a model that one stage of a pipeline computes.

A model that is cut to a stage is called as a whole one: ``hidden_states`` begins with what was received in place of the embeddings,
and returns what is sent in place of hidden states. So training methods, prefixes, references and caches need not know of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import paddle

from llmctl.nn.symbolic import size
from llmctl.parallel import collectives
from llmctl.parallel.axis import Axis
from llmctl.parallel.cuts import Cuts

SHARED_BY_PREFIX = ("prefix.embedding", "prefix.hidden_weight", "prefix.hidden_bias")
"""Parameters of a prefix with a projection that all its layers use."""


class Elsewhere(paddle.nn.Layer):
    """In the place of a layer that other stages have."""

    def forward(self, x: paddle.Tensor, *_: Any) -> paddle.Tensor:
        return x


class Stage:
    """What a stage computes of the models that are attached to it.

    Args:
        cuts: The parts of all stages.
        number: The number of the stage.

    Attributes:
        pipeline: The ``Pipeline`` that passes what is computed from stage to stage, once there is one.
    """

    def __init__(self, cuts: Cuts, number: int) -> None:
        self.cuts, self.number, self.parts = cuts, number, cuts.parts(number)
        self._part, self._received = self.parts[0], deque[paddle.Tensor]()
        self.pipeline: Any = None

    def attach(self, model: Any) -> None:
        """Cuts a model to this stage, in place: other layers and their parameters are dropped, and its layers keep their numbers.

        Args:
            model: A ``CausalLM``; several may be attached, such as the reference of DPO.
        """
        decoder, names = model.decoder, self.cuts.names(self.number)
        blocks, held = decoder.blocks, self.held
        for layer in range(len(blocks)):
            if layer not in held:
                blocks[layer] = Elsewhere()
        _drop_others(model, names)
        begin, end = decoder.begin, decoder.end
        decoder.begin = lambda ids, layout: begin(ids, layout) if self.first else self._received.popleft()
        decoder.end = lambda x: end(x) if self.last else x
        decoder.run_blocks = lambda *inputs: self._run_blocks(blocks, *inputs)
        model.auxiliary_sums = lambda arrays: self._add_sums(model, blocks, arrays)
        model.stage = self

    @property
    def held(self) -> list[int]:
        """Numbers of its layers."""
        return [layer for part in self.parts for layer in self.cuts.layers[part]]

    @property
    def first(self) -> bool:
        """Whether the part that is computed begins with the embeddings."""
        return self._part == 0

    @property
    def last(self) -> bool:
        """Whether the part that is computed ends with the output head."""
        return self._part == len(self.cuts.layers) - 1

    def run(
        self, part: int, received: Sequence[paddle.Tensor], hidden: Callable[[], tuple[Any, ...]]
    ) -> tuple[Any, ...]:
        """What one part sends on, or gives to the loss.

        Args:
            part: Its number.
            received: What the part before it sent; empty for the first.
            hidden: Calls the attached models, as ``Task.hidden`` does.
        """
        self._part, self._received = part, deque(received)
        found = hidden()
        assert not self._received, "the parts of a pipeline must send as many tensors as the next ones take"
        return found

    def forward(self, hidden: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...] | None:
        """One pass through all stages without gradients, as ``Pipeline.forward``."""
        found: tuple[Any, ...] | None = self.pipeline.forward(hidden)
        return found

    def broadcast_array(self, array: np.ndarray | None) -> np.ndarray:
        """An array of the last stage, on every stage; what the others pass is ignored."""
        found: np.ndarray = self.pipeline.broadcast_array(array)
        return found

    def sum_over_stages(self, weights: Mapping[str, Any], stages: Axis, ends: Axis) -> None:
        """Completes gradients of tensors that several stages have, in place; all stages call it after their last backward pass.

        Args:
            weights: Name -> tensor, or the same part of it on all of these stages.
            stages: All stages.
            ends: The first and the last one.
        """
        for names, axis in ((self.cuts.shared, ends), (SHARED_BY_PREFIX, stages)):
            here = [weights[name] for name in names if name in weights]
            if here and axis.size > 1:
                for weight in here:
                    if weight.grad is None:
                        weight.grad = paddle.zeros(weight.shape, weight.dtype)
                collectives.all_reduce_all([weight.grad for weight in here], axis)

    def _run_blocks(self, blocks: Any, x_BTD: paddle.Tensor, cos_sin: Any, mask: Any, cache: Any) -> paddle.Tensor:
        new = size(x_BTD, 1)
        for layer in self.cuts.layers[self._part]:
            x_BTD = blocks[layer](x_BTD, cos_sin, mask, cache, layer)
        # The parts of a stage share a cache.
        if cache is not None and self._part == self.parts[-1]:
            cache.advance(new)
        return x_BTD

    def _add_sums(self, model: Any, blocks: Any, arrays: Mapping[str, Any]) -> tuple[paddle.Tensor, ...]:
        """The sums for a balancing loss over the layers of this part and those before it."""
        if not (model.training and model.aux_loss):
            return ()
        before, self._received = tuple(self._received), deque()
        inside = [
            inner for layer in self.cuts.layers[self._part] for inner in blocks[layer].sublayers(include_self=True)
        ]
        own = model.auxiliary_sums_of(inside, arrays)
        return tuple(a + b for a, b in zip(before, own, strict=True)) if before and own else before or own


def _drop_others(model: paddle.nn.Layer, names: Collection[str]) -> None:
    """Replaces layers outside the blocks none of whose own parameters is held."""
    for path, layer in list(model.named_sublayers()):
        own = [f"{path}.{name}" for name, _ in layer.named_parameters(include_sublayers=False)]
        if own and not any(name in names for name in own):
            parent, _, name = path.rpartition(".")
            (dict(model.named_sublayers(include_self=True))[parent])._sub_layers[name] = Elsewhere()
