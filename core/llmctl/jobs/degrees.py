"""Whether a model can be divided as the section ``parallel`` asks. Nothing here imports paddle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.card.dims import Dims
from llmctl.card.family import Family, Tensor
from llmctl.config.parallel import ParallelConfig
from llmctl.errors import ConfigError
from llmctl.jobs.quantized_base import FLOAT
from llmctl.jobs.shares import by_inputs, divided
from llmctl.parallel.cuts import cut
from llmctl.quant import GROUP


def check(parallel: ParallelConfig, method: Any, card: Family, dims: Dims) -> None:
    """Checks that the degrees divide the model.

    Args:
        parallel: The section of the configuration.
        method: The section ``method``; None = all parameters are trained.
        card: The family.
        dims: The model's dims.

    Raises:
        ConfigError: One does not; the message has the key, what it does not divide, and what is allowed.
    """
    base = base_of(method)
    _check_tensor(parallel.tensor, base, card, dims)
    _check_layers(parallel, card, dims)
    _check_experts(parallel.expert, card, dims)


def base_of(method: Any) -> str:
    """The codes that a section ``method`` quantizes the base to; ``float`` = none."""
    return FLOAT if method is None else method.base


def divides(card: Family, dims: Dims, base: str, degree: int) -> bool:
    """Whether so many tensor parallel ranks can share the layers of a model.

    Args:
        card: The family.
        dims: The model's dims.
        base: The codes that its linears are quantized to in training, as ``method.base``.
        degree: How many.
    """
    return not indivisible(card, dims, degree) and _torn(card, dims, base, degree) is None


def _check_tensor(degree: int, base: str, card: Family, dims: Dims) -> None:
    if divides(card, dims, base, degree):
        return
    use = f"use {_one_of([n for n in range(1, int(dims.heads) + 1) if divides(card, dims, base, n)])}"
    problem = indivisible(card, dims, degree)
    if problem:
        raise ConfigError(f"parallel.tensor={degree} does not divide {problem} of the model; {use}")
    tensor = _torn(card, dims, base, degree)
    assert tensor is not None
    raise ConfigError(
        f"parallel.tensor={degree} cuts the {tensor.shape[0]} inputs of {tensor.name} inside the groups of {GROUP} that "
        f"method.base={base} has a scale for; {use}, or method.base=float"
    )


def indivisible(card: Family, dims: Dims, degree: int) -> str:
    """A size that a degree does not divide, as ``heads=6``; empty if there is none."""
    for tensor in _kinds(card, dims):
        for symbol in sorted(divided(tensor) - {"vocab"}):
            count = int(dims[symbol])
            shared = symbol == "kv_heads" and degree > count and degree % count == 0
            if count % degree and not shared:
                return f"{symbol}={count}"
    return ""


def _kinds(card: Family, dims: Dims) -> list[Tensor]:
    """A tensor of each row of the table."""
    return list({id(tensor.param): tensor for tensor in card.expand(dims)}.values())


def _torn(card: Family, dims: Dims, base: str, degree: int) -> Tensor | None:
    """A linear of a quantized base whose ranks would share a group of inputs, which has one scale; None if there is none."""
    if base == FLOAT or degree == 1:
        return None
    linears = (tensor for tensor in _kinds(card, dims) if tensor.layer is not None and by_inputs(tensor))
    return next((tensor for tensor in linears if tensor.shape[0] // degree % GROUP), None)


def _one_of(numbers: Sequence[int]) -> str:
    return f"one of {', '.join(map(str, numbers))}" if len(numbers) > 1 else f"{numbers[0]}"


def _check_layers(parallel: ParallelConfig, card: Family, dims: Dims) -> None:
    layers = int(dims.layers)
    if parallel.stages and sum(parallel.stages) != layers:
        raise ConfigError(
            f"parallel.stages={parallel.stages} have {sum(parallel.stages)} layers together, and the model has {layers}"
        )
    if parallel.pipeline * parallel.chunks > layers:
        parts = f"parallel.pipeline={parallel.pipeline}"
        if parallel.chunks > 1:
            parts += f" x parallel.chunks={parallel.chunks} = {parallel.pipeline * parallel.chunks} parts"
        raise ConfigError(f"{parts} for a model of {layers} layers; use at most {layers}")
    if parallel.pipeline > 1:
        cut(card, dims, parallel.pipeline, parallel.stages, parallel.chunks)


def _check_experts(degree: int, card: Family, dims: Dims) -> None:
    if degree == 1:
        return
    experts = {tensor.expert for tensor in card.expand(dims)} - {None}
    if not experts:
        raise ConfigError(f"parallel.expert={degree} has no effect: the model has no experts; leave it out")
    if len(experts) % degree:
        allowed = [n for n in range(1, len(experts) + 1) if len(experts) % n == 0]
        raise ConfigError(
            f"parallel.expert={degree} does not divide the {len(experts)} experts of the model; use {_one_of(allowed)}"
        )
