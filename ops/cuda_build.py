"""Compiles the CUDA kernels with nvcc; setup.py calls it if LLMCTL_OPS_CUDA=1."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ARCHITECTURES = (80, 90)
"""Compute capabilities to compile for: A100, H100."""


def build(sources: Path, target: Path, architectures: Sequence[int] = ARCHITECTURES) -> Path:
    """Compiles a folder's .cu files into a library.

    Args:
        sources: The folder.
        target: The library.
        architectures: Compute capabilities, ten times: 86 is 8.6.

    Raises:
        RuntimeError: There is no nvcc, or it failed; the message has its output.
    """
    compiler = shutil.which("nvcc")
    if compiler is None:
        raise RuntimeError("LLMCTL_OPS_CUDA=1 builds the CUDA kernels, which needs nvcc on the path")
    codes = [part for a in architectures for part in ("-gencode", f"arch=compute_{a},code=sm_{a}")]
    hidden = ["-Xcompiler", "-fPIC,-fvisibility=hidden"]
    files = [str(file) for file in sorted(sources.glob("*.cu"))]
    command = [compiler, "-O3", "-std=c++17", *codes, "-shared", *hidden, "-o", str(target), *files]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(f"nvcc failed:\n{made.stdout}{made.stderr}")
    return target
