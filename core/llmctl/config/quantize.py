"""The configuration of ``llmctl quantize``: sections ``model``, ``quantize``, ``calibration``, ``check`` and ``output``."""

from __future__ import annotations

from dataclasses import dataclass

from llmctl.config.schema import option, section

METHODS = ("gptq", "awq", "ptq-a8w8", "weight-only-int8", "weight-only-int4")
BACKENDS = ("llmctl", "paddleslim")
QKV = ("int4", "mixed", "int8")
FORMATS = ("packed", "gptq", "awq", "compressed-tensors", "gguf")


@dataclass(kw_only=True)
class FloatModelConfig:
    """The model that is quantized."""

    path: str = option("", "Folder of the model, or its name on a hub.")
    family: str = option("auto", "Family of the model; `auto` = the one that the folder names.")


@dataclass(kw_only=True)
class MethodsConfig:
    """How weights become codes."""

    method: str = option(
        "gptq", "`gptq` and `awq`: 4 bits; `ptq-a8w8`: 8-bit weights and smoothed 8-bit activations; the others round to nearest.",
        choices=METHODS,
    )  # fmt: skip
    backend: str = option("llmctl", "`paddleslim`: GPTQ, AWQSearch, PieceWiseSearch and Shift of PaddleSlim in place of llmctl's own.", choices=BACKENDS)  # fmt: skip
    group: int = option(-1, "Inputs that share a scale, a multiple of 32; 0 = one scale for each output, -1 = as suits the method.", minimum=-1)  # fmt: skip
    asymmetric: bool = option(False, "Zero points: the codes of a group cover its range from the smallest weight to the largest.")  # fmt: skip
    qkv: str = option("", "Bits of the projections of queries, keys and values; `mixed` = int4 queries, int8 keys and values; empty = those of the other linears.", choices=("", *QKV))  # fmt: skip
    scales: bool = option(
        True, "Search scales of input channels (AWQ, SmoothQuant); they become part of the layer before."
    )
    shift: bool = option(True, "With `ptq-a8w8` and format `packed`: search offsets of input channels, too.")
    pieces: int = option(3, "With `ptq-a8w8`: pieces of the input channels whose scales are searched one after the other.", minimum=1, maximum=16)  # fmt: skip
    correction: float = option(0.5, "With `gptq`: share of the error of earlier layers that the weights correct.", minimum=0, maximum=1)  # fmt: skip
    damping: float = option(0.0, "With `gptq`: added to the diagonal of the inputs' Gram matrix, as a share of its mean; 0 = by the number of tokens.", minimum=0, maximum=100)  # fmt: skip


@dataclass(kw_only=True)
class CalibrationConfig:
    """Text that looks like what the model will read."""

    file: str = option("", "Plain text, examples in any format of fine-tuning data, or a corpus of `llmctl data build`.")  # fmt: skip
    tokens: int = option(32768, "Tokens to calibrate on.", minimum=64)
    window: int = option(256, "Tokens of a calibration window; fewer if the model has fewer positions.", minimum=16)
    seed: int = option(42, "Random seed that chooses the windows.", minimum=0, maximum=2**32 - 1)
    columns: list[str] = option([], "Names of keys in the data, as `data.columns` of fine-tuning.")
    chat_template: str = option("auto", "As `data.chat_template` of fine-tuning.")


@dataclass(kw_only=True)
class CheckConfig:
    """What the quantized model must be like to be kept."""

    max_kl: float = option(0.2, "Mean KL divergence to the float model on text that was held out, in nats; above it nothing is kept.", above=0)  # fmt: skip


@dataclass(kw_only=True)
class QuantizedOutputConfig:
    """The folder that is written."""

    dir: str = option("", "Folder; must be new or empty, unless `overwrite` is set.")
    format: str = option("packed", "`packed` for the fused engine, or the layout of another tool.", choices=FORMATS)
    overwrite: bool = option(False, "Replace a folder that this command wrote.")
    resume: bool = option(False, "Continue with the layers that an interrupted run has finished.")


@dataclass(kw_only=True)
class QuantizeConfig:
    """The whole configuration."""

    model: FloatModelConfig = section(FloatModelConfig)
    quantize: MethodsConfig = section(MethodsConfig)
    calibration: CalibrationConfig = section(CalibrationConfig)
    check: CheckConfig = section(CheckConfig)
    output: QuantizedOutputConfig = section(QuantizedOutputConfig)
