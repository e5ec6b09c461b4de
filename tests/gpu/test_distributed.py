"""Distributed training on GPUs, over NCCL: what several write, and one as a rank, is what one process writes there.

Nothing here runs without GPUs. The same cases run over gloo in ``tests/e2e``.
"""

import pytest
from kit import by_command

from llmctl.runtime.process import device, import_paddle

GPUS = import_paddle("counting GPUs").device.cuda.device_count() if device() == "gpu" else 0

TOLERANCE = 1e-4
"""Several GPUs add in another order than one, and kernels for other shapes do too."""

CASES = {
    "data": (2, {}),
    "tensor": (2, {"parallel__tensor": 2}),
    "sequence": (2, {"parallel__tensor": 2, "parallel__sequence": "true"}),
    "pipeline": (2, {"parallel__pipeline": 2}),
    "stage 1": (2, {"parallel__sharding": 2}),
    "stage 2": (2, {"parallel__sharding": 2, "parallel__sharding_stage": 2}),
    "stage 3": (2, {"parallel__sharding": 2, "parallel__sharding_stage": 3}),
    "tensor and pipeline": (4, {"parallel__tensor": 2, "parallel__pipeline": 2}),
    "tensor and stage 3": (4, {"parallel__tensor": 2, "parallel__sharding": 2, "parallel__sharding_stage": 3}),
    "pipeline and data": (4, {"parallel__pipeline": 2}),
}
"""Name -> number of GPUs and settings."""


def needs(count):
    return pytest.mark.skipif(count > GPUS, reason=f"needs {count} GPUs; paddle sees {GPUS} here")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The output of one process on one GPU."""
    return by_command.finetune(tmp_path_factory.mktemp("one") / "out")


@needs(1)
def test_one_gpu_that_is_named_is_one_process(one, tmp_path):
    """All degrees are 1: nothing is divided, and nothing is exchanged."""
    degrees = ("data", "tensor", "pipeline", "sharding", "expert")
    found = by_command.finetune(tmp_path / "out", "1", **{f"parallel__{name}": 1 for name in degrees})
    by_command.assert_same(one, found, TOLERANCE)


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(count)) for name, (count, _) in CASES.items()])
def test_several_gpus_write_what_one_writes(name, one, tmp_path):
    count, settings = CASES[name]
    by_command.assert_same(one, by_command.finetune(tmp_path / "out", str(count), **settings), TOLERANCE)


@needs(2)
def test_what_two_gpus_saved_goes_on_with_one(one, tmp_path):
    settings = {"parallel__sharding": 2, "parallel__sharding_stage": 3}
    by_command.finetune(tmp_path / "out", "2", train__max_steps=2, train__decay_steps=3, **settings)
    by_command.finetune(tmp_path / "out", output__resume="true")
    by_command.assert_same(one, tmp_path / "out", TOLERANCE)
