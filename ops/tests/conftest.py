"""Every instruction set of this processor, one after the other."""

import pytest

from llmctl_ops import library


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
