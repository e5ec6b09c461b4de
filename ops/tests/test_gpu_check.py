"""tools/gpu_check.py, with the kernels on threads of this CPU and a false nvidia-smi."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def gpu_check():
    before = list(sys.path)
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import gpu_check

        yield gpu_check
    finally:
        sys.path[:] = before


class HostMemory:
    """Arrays of this machine, whose threads run the kernels."""

    name = "numpy"

    def put(self, array):
        held = np.ascontiguousarray(array)
        return held, held.ctypes.data

    def get(self, held):
        return held

    def wait(self):
        pass

    def copy(self, held):
        return held.copy()


def test_kernels_that_compute_what_numpy_does_are_equal(gpu_check, emulated):
    results = gpu_check.check(emulated, HostMemory(), (3, 601, 9, 2, 16), rounds=1)
    assert [one.name for one in results if not one.equal] == []
    assert len(results) == len(gpu_check.FORMS) + 3
    assert all(one.milliseconds > 0 for one in results)
    assert [one.copy_milliseconds is not None for one in results[-4:]] == [False, True, True, True]


def test_another_token_scale_or_code_differs(gpu_check, emulated, monkeypatch):
    memory = HostMemory()
    wrong = gpu_check.choose_one
    monkeypatch.setattr(gpu_check, "choose_one", lambda *given: (wrong(*given)[0] + 1, *wrong(*given)[1:]))
    assert gpu_check._sampling(emulated, memory, 3, 601, "greedy", 1).difference == math.inf
    as_given = gpu_check._as

    def other(wide, dtype):
        narrow, seen = as_given(wide, dtype)
        seen = seen.copy()
        seen[0, 0, 0] *= 3
        return narrow, seen

    monkeypatch.setattr(gpu_check, "_as", other)
    assert not gpu_check._quantize_kv(emulated, memory, (9, 2, 16), "float32", 1).equal


def test_the_whole_check_on_a_false_gpu_prints_and_writes_its_results(
    gpu_check, emulated, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(gpu_check, "gpu", lambda: ("Card 9", "1.2", 90))
    monkeypatch.setattr(gpu_check, "memory_of_this_machine", HostMemory)
    built = []
    monkeypatch.setattr(gpu_check, "build", lambda sources, target, architectures: built.append(architectures))
    monkeypatch.setattr(gpu_check.cuda, "open_library", lambda file: emulated)
    for name, value in (("ROWS", 2), ("VOCAB", 301), ("TOKENS", 5), ("HEADS", 2), ("HEAD_DIM", 8)):
        monkeypatch.setattr(gpu_check, name, value)
    assert gpu_check.main(["--rounds", "1", "--output", str(tmp_path / "result.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Card 9, driver 1.2, sm_90, numpy" and built == [[90]]
    assert sum(line.startswith("equal") for line in lines) == len(gpu_check.FORMS) + 3
    assert json.loads((tmp_path / "result.json").read_text())["gpu"] == "Card 9"


def test_a_machine_without_a_gpu_is_told_what_is_missing(gpu_check, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda program: None)
    assert gpu_check.main([]) == 2
    assert "error: there is no nvidia-smi" in capsys.readouterr().err


def test_torch_or_cupy_is_asked_for(gpu_check, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "gpu", lambda: ("Card 9", "1.2", 90))
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert gpu_check.main([]) == 2
    assert "torch or cupy is needed" in capsys.readouterr().err
