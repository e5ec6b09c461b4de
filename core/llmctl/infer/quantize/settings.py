"""How a model is quantized: what the configuration comes down to. No numpy here."""

from __future__ import annotations

from dataclasses import dataclass

from llmctl.config.quantize import MethodsConfig, QuantizeConfig
from llmctl.config.schema import changed_fields
from llmctl.errors import ConfigError

BITS = {"gptq": 4, "awq": 4, "ptq-a8w8": 8, "weight-only-int8": 8, "weight-only-int4": 4}
GROUPS = {"gptq": 64, "awq": 64, "ptq-a8w8": 0, "weight-only-int8": 128, "weight-only-int4": 64}
"""Method -> inputs that share a scale by default; 0 = all."""

QKV_BITS = {"int4": (4, 4), "mixed": (4, 8), "int8": (8, 8)}
"""Value of ``quantize.qkv`` -> bits of queries, and of keys and values."""

NEEDS_DATA = ("gptq", "awq", "ptq-a8w8")
"""Methods that look at inputs; the others round to nearest."""

PADDLESLIM = "paddleslim"
NOT_BY_PADDLESLIM = {
    "weight-only-int8": "rounding to nearest is llmctl's own",
    "weight-only-int4": "rounding to nearest is llmctl's own",
}
"""Method -> why this backend does not have it."""

WITHOUT_EFFECT = {
    "correction": ("gptq",), "damping": ("gptq",), "pieces": ("ptq-a8w8",), "shift": ("ptq-a8w8",),
    "scales": NEEDS_DATA,
}  # fmt: skip
"""Field -> methods that look at it."""


@dataclass(frozen=True)
class Settings:
    """How a model is quantized.

    Attributes:
        method: A key of ``BITS``.
        bits: Of the weights.
        group: Inputs that share a scale; 0 = all.
        form: One of ``methods.grids.FORMS``.
        q_bits: Of the projections of queries.
        kv_bits: Of those of keys and values.
        scales: Whether scales of input channels are searched.
        offsets: Whether offsets are.
        factors: Whether linears multiply their inputs where nothing before takes the scales.
        pieces: Pieces of the input channels that are searched one by one, of ``ptq-a8w8``.
        correction: How much of the error of the inputs is made good.
        damping: Of GPTQ; 0 = by the number of tokens.
        backend: One of ``config.quantize.BACKENDS``.
    """

    method: str
    bits: int
    group: int
    form: str = "signed"
    q_bits: int = 4
    kv_bits: int = 4
    scales: bool = True
    offsets: bool = False
    factors: bool = False
    pieces: int = 3
    correction: float = 0.5
    damping: float = 0.0
    backend: str = "llmctl"

    @property
    def qkv(self) -> str:
        """The key of ``QKV_BITS``."""
        return next(name for name, bits in QKV_BITS.items() if bits == (self.q_bits, self.kv_bits))

    @property
    def observes(self) -> bool:
        """Whether inputs of linears are collected."""
        return self.method in NEEDS_DATA


def settings_of(config: QuantizeConfig) -> Settings:
    """The settings of a configuration.

    Raises:
        ConfigError: A value has no effect with the method, or contradicts another.
    """
    part, default = config.quantize, QuantizeConfig().quantize
    for name, methods in WITHOUT_EFFECT.items():
        if part.method not in methods and getattr(part, name) != getattr(default, name):
            raise ConfigError(
                f"quantize.{name} has no effect with quantize.method={part.method}, only with {', '.join(methods)}; leave it out"
            )
    if not config.calibration.file and part.method not in NEEDS_DATA:
        idle = [f"calibration.{name}" for name in changed_fields(config.calibration)]
        idle += [f"check.{name}" for name in changed_fields(config.check)]
        if idle:
            raise ConfigError(
                f"{idle[0]} has no effect without calibration.file; leave it out, or give --calibration FILE"
            )
    if part.backend == PADDLESLIM:
        _check_paddleslim(part)
    if part.group > 0 and part.group % 32:
        raise ConfigError(f"quantize.group={part.group} must be 0 (a scale for each output) or a multiple of 32")
    bits = BITS[part.method]
    q_bits, kv_bits = QKV_BITS.get(part.qkv, (bits, bits))
    if q_bits < bits:
        raise ConfigError(f"quantize.qkv={part.qkv} has fewer bits than quantize.method={part.method}; leave it out")
    group = GROUPS[part.method] if part.group < 0 else part.group
    form = "asymmetric" if part.asymmetric else "signed"
    packed = config.output.format == "packed"
    return Settings(
        part.method, bits, group, form, q_bits, kv_bits, part.scales, part.method == "ptq-a8w8" and part.shift and packed, packed,
        part.pieces, part.correction, part.damping, part.backend,
    )  # fmt: skip


def _check_paddleslim(part: MethodsConfig) -> None:
    """Checks that PaddleSlim has what is asked.

    Raises:
        ConfigError: It has not.
    """
    if reason := NOT_BY_PADDLESLIM.get(part.method):
        offered = ", ".join(method for method in BITS if method not in NOT_BY_PADDLESLIM)
        raise ConfigError(
            f"quantize.backend={PADDLESLIM} has no {part.method}: {reason}. It has {offered}; leave out the backend, or choose one of these"
        )
    if part.asymmetric and part.method == "gptq":
        raise ConfigError(
            f"quantize.asymmetric has no effect with quantize.backend={PADDLESLIM}, whose GPTQ is symmetric; leave one out"
        )
