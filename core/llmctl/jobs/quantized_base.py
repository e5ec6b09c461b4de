"""A base model whose checkpoint is quantized: what can be trained over its codes, and what becomes of the result."""

from __future__ import annotations

from pathlib import Path

from llmctl.checkpoint.build import CheckedModel
from llmctl.checkpoint.gguf.folder import CACHE
from llmctl.config.common import MethodConfig
from llmctl.errors import ConfigError
from llmctl.io.sizes import shown
from llmctl.quant.formats.scheme import Scheme

FLOAT = "float"
"""Value of ``method.base`` for a base that is not quantized in training."""


def check(scheme: Scheme | None, method: MethodConfig, adds_tokens: bool, folder: Path) -> None:
    """Checks that a checkpoint can be trained as it is quantized.

    Args:
        scheme: How it is quantized; None = it holds floats.
        method: The section ``method``.
        adds_tokens: Whether tokens are added.
        folder: The checkpoint.

    Raises:
        ConfigError: It cannot; the message has the reason and what to do.
    """
    if scheme is None or scheme.method == CACHE:
        return
    is_of, floats = f"model.path={folder} has {scheme}", f"make its float model: llmctl convert {folder} TARGET"
    if not scheme.floats:
        _check_codes(scheme, method, is_of, floats)
    if adds_tokens:
        raise ConfigError(
            f"model.add_tokens and model.add_special_tokens write the model anew, and {is_of}; leave them out, or {floats}"
        )


def _check_codes(scheme: Scheme, method: MethodConfig, is_of: str, floats: str) -> None:
    if not scheme.keeps_codes:
        raise ConfigError(
            f"{is_of}, over which adapters are not trained; {floats}, and give that with method.base=nf4 or int8"
        )
    if method.name == "full":
        raise ConfigError(
            f"{is_of}, which method.name=full cannot train; use method.name=lora, which trains an adapter over them, or {floats}"
        )
    if method.base != FLOAT:
        raise ConfigError(f"{is_of}, which are used as they are: leave out method.base={method.base}, or {floats}")
    if method.pissa:
        raise ConfigError(
            f"method.pissa subtracts its initial adapter from the base, but {is_of}; leave it out, or {floats}"
        )


def notes(model: CheckedModel, method: MethodConfig) -> tuple[str, ...]:
    """What becomes of an adapter over a quantized base, for the beginning of a run; empty where the base holds floats."""
    scheme = model.scheme
    if method.name == "lora" and method.base != FLOAT:
        return (
            f"base: quantized to {method.base} in training; llmctl merge adds the adapter to the dequantized weights",
        )
    if scheme is None or not scheme.keeps_codes:
        return ()
    use = f"base: {scheme}, used as they are; llmctl generate and serve run them with what is trained beside them"
    if method.name != "lora":
        return (use,)
    return (
        f"{use}. llmctl merge makes floats of codes and adapter, {shown(2 * model.plugin.card.count(model.dims))} with --dtype "
        "bfloat16; they are not rounded to codes again, unless by llmctl quantize, whose errors are not those that were trained with",
    )
