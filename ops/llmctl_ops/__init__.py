"""Operators for training and running language models on the CPU, compiled where they can be.

Each takes paddle tensors and has a twin in ``reference`` that it stands for: for types other than float32, for other
devices, for programs being traced, and where there is no compiled library (``llmctl ops doctor`` says why).
"""

from llmctl_ops.attention import attention
from llmctl_ops.calling import fits

__all__ = ["attention", "fits"]
