"""Building, loading and choosing the library, and what stands in for it."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from click.testing import CliRunner

import llmctl_ops
from llmctl.commands.ops import command
from llmctl.infer.engine import kernel_check
from llmctl.infer.executors.native import NativeExecutor
from llmctl_ops import cuda, library, linear, registry, structs
from llmctl_ops.doctor import examine
from llmctl_ops.sampling import Sampler

OPS = Path(__file__).resolve().parents[1]


@pytest.fixture
def doctor(monkeypatch):
    """Runs ``llmctl ops doctor`` with a library; exit code and findings by operator."""

    def run(chosen):
        monkeypatch.setattr(library, "load", lambda: chosen)
        done = CliRunner().invoke(command, ["doctor", "--json"])
        return done.exit_code, {row["op"]: row for row in json.loads(done.stdout)}

    return run


def compile_library(folder, **environment):
    """Builds the distribution's library in a copy of its sources."""
    copy = folder / "ops"
    shutil.copytree(OPS, copy, ignore=shutil.ignore_patterns("*.so", "build", "tests", "*.egg-info"))
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    return done, copy / "llmctl_ops" / library.FILE.name


def test_without_a_compiler_the_build_succeeds_and_leaves_no_library(tmp_path):
    done, file = compile_library(tmp_path, CXX="no-such-compiler", LLMCTL_OPS_BUILD="")
    assert done.returncode == 0, done.stderr
    assert "reference path" in done.stderr and not file.exists()


def test_where_kernels_are_required_a_failed_build_is_an_error(tmp_path):
    done, file = compile_library(tmp_path, CXX="no-such-compiler", LLMCTL_OPS_BUILD="require")
    assert done.returncode != 0 and not file.exists()


def test_a_compiler_gives_a_library_of_this_interface():
    if not shutil.which(os.environ.get("CXX", "g++").split()[0]):
        pytest.skip("no C++ compiler")
    assert library.open_library(library.FILE, "auto").handle is not None


@pytest.mark.parametrize(
    ("choice", "why"), [("reference", "LLMCTL_OPS=reference"), ("auto", "cannot be loaded"), ("absent", "not compiled")]
)
def test_the_doctor_says_why_there_are_no_kernels_and_everything_works(doctor, tmp_path, choice, why):
    file = tmp_path / "libllmctl_ops.so"
    if choice != "absent":
        file.write_bytes(b"this is no library")
    code, findings = doctor(library.open_library(file, choice.replace("absent", "auto")))
    assert code == 0
    assert {row["path"] for row in findings.values()} == {"reference"}
    assert all(why in row["why"] and row["error"] is None for row in findings.values())
    x, place = paddle.ones([1, 3, 1, 4]), paddle.arange(3, dtype="int32").unsqueeze(0)
    out = llmctl_ops.attention(x, x, x, place, place + 3)
    assert float((out - x).abs().max()) < 1e-6


def test_a_library_of_another_interface_is_not_used(monkeypatch):
    if library.open_library(library.FILE, "auto").handle is None:
        pytest.skip("no library here")
    monkeypatch.setattr(library, "INTERFACE", library.INTERFACE + 1)
    found = library.open_library(library.FILE, "auto")
    assert found.handle is None and "interface" in found.why and "reinstall" in found.why


@pytest.mark.parametrize("struct", structs.STRUCTS)
def test_a_library_with_another_struct_is_not_used_and_the_reason_names_it(monkeypatch, struct):
    if library.open_library(library.FILE, "auto").handle is None:
        pytest.skip("no library here")
    longer = type(struct.__name__, (structs.Struct,), {"_fields_": (*struct._fields_, ("more", structs.SIZE))})
    found = [longer if one is struct else one for one in structs.STRUCTS]
    monkeypatch.setattr(library, "STRUCTS", found)
    refused = library.open_library(library.FILE, "auto")
    sizes = ctypes.sizeof(struct), ctypes.sizeof(longer)
    assert refused.handle is None and refused.level == "reference"
    assert "struct {} of {} bytes, {} are needed; reinstall".format(struct.__name__, *sizes) in refused.why


@pytest.mark.parametrize("struct", structs.STRUCTS)
def test_a_misspelt_field_of_a_struct_is_an_error(struct):
    with pytest.raises(AttributeError, match="misspelt"):
        struct().misspelt = 1


def test_a_value_that_is_none_of_the_choices_is_refused():
    with pytest.raises(ValueError, match="portable"):
        library.open_library(library.FILE, "sse9")


def test_the_doctor_finds_every_operator_equal_to_its_reference(level, doctor):
    code, findings = doctor(library.load())
    assert code == 0
    findings.pop("cuda", None)
    assert set(findings) == {op.name for op in registry.OPS} | {"linear", "sampling", "decoder"}
    assert all(row["path"] == level and 0 <= row["error"] < registry.TOLERANCE for row in findings.values())


def test_the_doctor_finds_a_step_that_computes_something_else(level, doctor, monkeypatch):
    original = NativeExecutor.run
    monkeypatch.setattr(NativeExecutor, "run", lambda self, batch: original(self, batch) + 1e-3)
    code, findings = doctor(library.load())
    assert code == 1 and "differs by" in findings["decoder"]["problem"]


def test_the_doctor_finds_a_product_that_computes_something_else(level, doctor, monkeypatch):
    original = linear.product
    monkeypatch.setattr(linear, "product", lambda *given: original(*given) + 1e-2)
    code, findings = doctor(library.load())
    assert code == 1 and "differs by" in findings["linear"]["problem"]


def test_sampling_that_takes_another_token_is_infinitely_apart(level):
    def wrong(logits, rows, logprobs):
        found = Sampler(logits.shape[1]).choose(logits, rows, logprobs)
        found[0][4] += 1
        return found

    assert kernel_check.sampling_difference(wrong) == float("inf")


def test_the_doctor_compares_the_kernels_for_gpus_by_what_it_is_given(monkeypatch, tmp_path):
    (tmp_path / "library.so").touch()
    asked = []
    monkeypatch.setattr(cuda, "FILE", tmp_path / "library.so")
    monkeypatch.setattr(cuda, "load", lambda: "a library")
    monkeypatch.setattr(cuda, "choose", lambda logits, *rest: asked.append((logits, *rest)))
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(paddle, "CUDAPlace", lambda number: paddle.CPUPlace())
    monkeypatch.setattr("llmctl_ops.doctor.OPS", ())

    def compare(choose):
        choose(np.ones((1, 3), np.float32), ["a choice"], True)
        return 1e-9

    (found,) = examine((), compare)
    assert (found.op, found.path, found.error, found.problem) == ("cuda", "cuda", 1e-9, "")
    assert asked[0][0].shape == [1, 3] and asked[0][1:] == (["a choice"], True)
    assert examine()[0].error is None


def test_the_doctor_tells_of_kernels_for_gpus_only_where_they_were_built(doctor, monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "FILE", tmp_path / "library.so")
    monkeypatch.setattr(cuda, "load", lambda: None)
    assert "cuda" not in doctor(library.load())[1]
    cuda.FILE.write_bytes(b"this is no library")
    code, findings = doctor(library.load())
    assert code == 0 and findings["cuda"]["path"] == "reference"
    assert "library.so cannot be loaded" in findings["cuda"]["why"] and findings["cuda"]["error"] is None


@pytest.mark.parametrize("error", [1.0, float("nan")])
def test_the_doctor_fails_where_a_compiled_operator_disagrees(level, doctor, monkeypatch, error):
    wrong = registry.Op(registry.OPS[0].name, lambda: error)
    monkeypatch.setattr("llmctl_ops.doctor.OPS", (wrong,))
    code, findings = doctor(library.load())
    assert code == 1 and "differs" in findings[wrong.name]["problem"]


def test_an_operator_that_fails_is_a_finding_and_not_a_crash(level, doctor, monkeypatch):
    def fail():
        raise RuntimeError("the kernel is gone")

    monkeypatch.setattr("llmctl_ops.doctor.OPS", (registry.Op("attention", fail),))
    code, findings = doctor(library.load())
    assert code == 1 and "the kernel is gone" in findings["attention"]["problem"]


def test_without_the_distribution_the_doctor_says_how_to_install_it(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "llmctl_ops"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "llmctl_ops", None)
    done = CliRunner().invoke(command, ["doctor"])
    assert done.exit_code == 0 and "pip install paddle-llmctl-ops" in done.output
