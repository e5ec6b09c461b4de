"""Every instruction set of this processor, one after the other, and CUDA kernels on its threads."""

import shutil
import subprocess
from pathlib import Path

import pytest

from llmctl_ops import cuda, library

FOLDER = Path(__file__).parent
SOURCES = sorted((FOLDER.parent / "csrc" / "cuda").glob("*.cu"))


def levels():
    """The instruction sets whose kernels can run here; none where there is no library."""
    found = library.open_library(library.FILE, "auto")
    return library.LEVELS[: library.LEVELS.index(found.level) + 1] if found.handle else ()


@pytest.fixture(params=library.LEVELS)
def level(request, monkeypatch):
    """Makes the operators run with the kernels of one instruction set."""
    if request.param not in levels():
        pytest.skip(f"no {request.param} kernels here")
    chosen = library.open_library(library.FILE, request.param)
    assert chosen.level == request.param
    monkeypatch.setattr(library, "load", lambda: chosen)
    return request.param


@pytest.fixture
def seeded():
    """Draws float32 tensors that want gradients: ``seeded(2, 3)``."""
    import paddle

    paddle.seed(5)

    def draw(*shape):
        tensor = paddle.randn(shape)
        tensor.stop_gradient = False
        return tensor

    return draw


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The library of CUDA kernels compiled for threads of this CPU."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    file = tmp_path_factory.mktemp("cuda") / "library.so"
    given = [part for source in SOURCES for part in ("-x", "c++", str(source))]
    header = str(FOLDER / "cuda_on_cpu.h")
    flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-pthread", "-include", header, "-o", str(file)]
    made = subprocess.run([compiler, *flags, *given], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return cuda.open_library(file)
