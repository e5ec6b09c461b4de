"""llmctl: an LLM toolkit for PaddlePaddle, a slim core with one plugin per model family.

This is the public API; importing it imports neither paddle nor numpy. What needs them is imported on first use.

For users:
    Text from a model: ``LLM``, ``SamplingParams``, ``TextOutput``, ``TokenLogprob``, ``TextScore``.
    A model and its tokenizer: ``load``.
    Training: ``finetune``, ``dpo``, ``pretrain``, their configurations ``FinetuneConfig``, ``DpoConfig``, ``PretrainConfig``, and
    ``Run``, ``Callback``.

For the cards of plugins, which need nothing else of core but the layers in ``llmctl.nn`` (and ``llmctl.testing`` in tests):
    The card: ``Family``, ``Param``, ``Size``, ``Moe``, ``Gguf``, ``TokenFacts``, ``Dims``.
    Fields of config.json: ``ConfigField`` (older name: ``Setting``), ``REQUIRED``, ``HF_DECODER``, ``required_fields``,
    ``fixed_fields``, ``above_zero``, ``full_attention``.
    Rows of tensors: ``HF_DECODER_ROWS``, ``linear_rows``, ``norm_rows``.
    Data in files of the package: ``sizes``, ``template``; an expression of words: ``word_pattern``.
    RoPE and ALiBi: ``ROPE_RULES``, ``ROPE_BY_WAVELENGTH``, ``RopeRule``, ``RopeParams``, ``rope_rule``,
    ``rope_frequencies``, ``alibi_slopes``.
    The fused decoder: ``DecoderSpec``, ``Rope``, ``Experts``, ``PrefixLM``, ``rope_spec``, ``fill_decoder``.
    Names and packing in files: ``WeightMapping``, ``TensorSlice``, ``ModuleMapping``, ``map_modules``,
    ``hf_decoder_fused``, ``fused_or_split``, ``split_or_fused``, ``interleaved_or_contiguous``, ``contiguous_slices``,
    ``grouped_qkv_slices``.
    Capabilities: ``Supported``, ``Experimental``, ``Unsupported``.
    Hooks: ``hookimpl``, ``API``, and their types ``Parallel``, ``Split``, ``Segment``, ``QuantTarget``.
    Errors: ``LlmctlError``, ``ConfigError``, ``DataError``, ``TokenizerError``, ``UnsupportedError``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from llmctl._version import __version__
from llmctl.card.alibi import alibi_slopes
from llmctl.card.capabilities import Experimental, Supported, Unsupported
from llmctl.card.config_fields import HF_DECODER, REQUIRED, ConfigField, Setting
from llmctl.card.decoder_spec import DecoderSpec, Experts, PrefixLM, Rope
from llmctl.card.dims import Dims
from llmctl.card.family import Family, Gguf, Moe, Param, Size
from llmctl.card.fill_decoder import fill_decoder, rope_spec
from llmctl.card.presets import (
    HF_DECODER_ROWS,
    above_zero,
    fixed_fields,
    full_attention,
    linear_rows,
    norm_rows,
    required_fields,
)
from llmctl.card.rope import ROPE_BY_WAVELENGTH, ROPE_RULES, RopeParams, RopeRule, rope_frequencies, rope_rule
from llmctl.card.sharding import Parallel, QuantTarget, Segment, Split
from llmctl.card.sizes import sizes
from llmctl.card.tokens import TokenFacts, template, word_pattern
from llmctl.card.weight_map import (
    ModuleMapping,
    TensorSlice,
    WeightMapping,
    contiguous_slices,
    fused_or_split,
    grouped_qkv_slices,
    hf_decoder_fused,
    interleaved_or_contiguous,
    map_modules,
    split_or_fused,
)
from llmctl.errors import ConfigError, DataError, LlmctlError, TokenizerError, UnsupportedError
from llmctl.plugins.hookspecs import API, hookimpl

if TYPE_CHECKING:
    from llmctl.api.inference import LLM
    from llmctl.api.loading import load
    from llmctl.api.run import Run
    from llmctl.api.training import dpo, finetune, pretrain
    from llmctl.config.dpo import DpoConfig
    from llmctl.config.finetune import FinetuneConfig
    from llmctl.config.pretrain import PretrainConfig
    from llmctl.infer.sampling import SamplingParams, TokenLogprob
    from llmctl.infer.text.generator import TextOutput
    from llmctl.infer.text.score import TextScore
    from llmctl.train.callbacks.base import Callback

__all__ = [
    "API",
    "HF_DECODER",
    "HF_DECODER_ROWS",
    "LLM",
    "REQUIRED",
    "ROPE_BY_WAVELENGTH",
    "ROPE_RULES",
    "Callback",
    "ConfigError",
    "ConfigField",
    "DataError",
    "DecoderSpec",
    "Dims",
    "DpoConfig",
    "Experimental",
    "Experts",
    "Family",
    "Gguf",
    "FinetuneConfig",
    "LlmctlError",
    "ModuleMapping",
    "Moe",
    "Parallel",
    "Param",
    "PrefixLM",
    "PretrainConfig",
    "QuantTarget",
    "Rope",
    "RopeParams",
    "RopeRule",
    "Run",
    "SamplingParams",
    "Segment",
    "Setting",
    "Size",
    "Split",
    "Supported",
    "TensorSlice",
    "TextOutput",
    "TextScore",
    "TokenFacts",
    "TokenLogprob",
    "TokenizerError",
    "Unsupported",
    "UnsupportedError",
    "WeightMapping",
    "__version__",
    "above_zero",
    "alibi_slopes",
    "contiguous_slices",
    "dpo",
    "fill_decoder",
    "finetune",
    "fixed_fields",
    "full_attention",
    "fused_or_split",
    "grouped_qkv_slices",
    "hf_decoder_fused",
    "hookimpl",
    "interleaved_or_contiguous",
    "linear_rows",
    "load",
    "map_modules",
    "norm_rows",
    "pretrain",
    "required_fields",
    "rope_frequencies",
    "rope_rule",
    "rope_spec",
    "sizes",
    "split_or_fused",
    "template",
    "word_pattern",
]

_LAZY = {
    "Callback": "llmctl.train.callbacks.base",
    "DpoConfig": "llmctl.config.dpo",
    "FinetuneConfig": "llmctl.config.finetune",
    "LLM": "llmctl.api.inference",
    "PretrainConfig": "llmctl.config.pretrain",
    "Run": "llmctl.api.run",
    "SamplingParams": "llmctl.infer.sampling",
    "TextOutput": "llmctl.infer.text.generator",
    "TextScore": "llmctl.infer.text.score",
    "TokenLogprob": "llmctl.infer.sampling",
    "dpo": "llmctl.api.training",
    "finetune": "llmctl.api.training",
    "load": "llmctl.api.loading",
    "pretrain": "llmctl.api.training",
}
"""Name -> module that it is in, imported on first use."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
