"""Operators for training and running language models on the CPU, compiled where they can be.

Each takes paddle tensors and has a twin in ``reference`` that it stands for: for types other than float32, for other
devices, for programs being traced, and where there is no compiled library (``llmctl ops doctor`` says why).
"""

from llmctl_ops.activation import gelu_tanh
from llmctl_ops.attention import attention
from llmctl_ops.bias import add_bias
from llmctl_ops.calling import fits
from llmctl_ops.gate import swiglu
from llmctl_ops.loss import cross_entropy
from llmctl_ops.norm import layer_norm, rms_norm
from llmctl_ops.optimizer import adamw, sum_squares
from llmctl_ops.rotary import rope

__all__ = [
    "adamw",
    "add_bias",
    "attention",
    "cross_entropy",
    "fits",
    "gelu_tanh",
    "layer_norm",
    "rms_norm",
    "rope",
    "sum_squares",
    "swiglu",
]
