"""Weight quantization: block-wise codes in 8 and 4 bits, and the linear layer over quantized weights.

A quantized base is one more linear layer under the LoRA layer, and neither knows the other: the layer dequantizes its weight
on request, so DoRA and merging work over it. ``formats`` read and write the codes of other tools, ``methods`` are those of
post-training quantization. Packed weights of the inference engine are in ``llmctl.infer.packed``.
"""

GROUP = 64
"""Inputs of an output that have a scale together, in a quantized base."""
