"""How the linears of a checkpoint are quantized, all alike or by rules for their names."""

from __future__ import annotations

from dataclasses import dataclass

from llmctl.io.patterns import matches

KEEP_CODES = ("gptq", "awq", "compressed-tensors", "bitsandbytes")
"""Methods whose linears are codes with scales, as ``codes.Codes``."""

BLOCK = 64
"""Weights of bitsandbytes that share a scale, unless tensors say another number."""

Block = tuple[int, int]
"""Outputs and inputs that share a scale; 0 = all."""


@dataclass(frozen=True)
class Rule:
    """Linears that are quantized in another way.

    Attributes:
        pattern: Regular expression, which fits the beginning of their names.
        scheme: How they are; None = not at all.
    """

    pattern: str
    scheme: Scheme | None


@dataclass(frozen=True)
class Scheme:
    """How the linears of a checkpoint are quantized.

    Attributes:
        method: ``gptq``, ``awq``, ``compressed-tensors``, ``fp8``, ``fp4``; or ``bitsandbytes``, ``gguf`` or ``paddlenlp``, whose
            tensors say all else themselves.
        bits: Bits of a code; the fewest, where there are several.
        group: Inputs of a group; -1 = one group.
        symmetric: Whether zero points are all the middle of the range.
        v2: Of gptq: zero points are stored as they are.
        rows: Of awq: words have the inputs of an output (``gemv``), not the outputs of an input.
        several: Of compressed-tensors: all numbers of bits; the shape of a linear's tensors tells which it has.
        sizes: Of compressed-tensors: all sizes of groups; 0 = one group, -1 = as the tensors say.
        blocks: Of floats of 8 and 4 bits: what shares a scale, all that there are; None = all weights or an output.
        rules: Linears that are quantized in another way; the first that fits counts.
    """

    method: str
    bits: int
    group: int = -1
    symmetric: bool = True
    v2: bool = False
    rows: bool = False
    several: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    blocks: tuple[Block | None, ...] = ()
    rules: tuple[Rule, ...] = ()

    @property
    def floats(self) -> bool:
        """Whether all linears are floats of 8 or 4 bits, whose values are taken instead of their codes."""
        return bool(self.blocks) and not self.several

    @property
    def keeps_codes(self) -> bool:
        """Whether the linears of a model in memory keep the codes; of other methods they are floats."""
        return self.method in KEEP_CODES and not self.floats

    @property
    def stored_bits(self) -> float:
        """Bits of a weight in memory, with its share of scales and zero points."""
        if self.method == "bitsandbytes" and self.bits == 4:
            return 4 + 32 / BLOCK
        in_group = max(self.group, 0)
        return (4 if max(self.several, default=self.bits) <= 4 else 8) + (
            16 * (1 if self.symmetric else 2) / in_group if in_group else 0
        )

    def of(self, linear: str) -> Scheme | None:
        """How a linear is quantized, by the rules; None = not at all."""
        fitting = (
            rule.scheme for rule in self.rules if matches(rule.pattern, linear, "quantization_config", whole=False)
        )
        return next(fitting, self)

    def __str__(self) -> str:
        groups = f" in groups of {self.group}" if self.group > 0 else ""
        what = "floats" if self.floats else "codes"
        bits = " and ".join(map(str, self.several or (self.bits,)))
        return f"{self.method} {what} of {bits} bits{groups}"
