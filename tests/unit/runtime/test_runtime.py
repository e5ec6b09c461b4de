"""Runtime settings: what is chosen, what overrides it, and that it reaches paddle."""

import json
import os
import subprocess
import sys

import pytest

from llmctl.errors import ConfigError
from llmctl.runtime import process as runtime


def chosen(environ, **options):
    return {row.name: row for row in runtime.plan(environ, **options)}


def test_threads_come_from_our_variable_then_openmps_then_the_configuration_then_the_cores():
    assert chosen({"LLMCTL_THREADS": "3", "OMP_NUM_THREADS": "5"}, threads=7)["threads"].value == "3"
    assert chosen({"OMP_NUM_THREADS": "5"})["threads"].value == "5"
    assert chosen({"OMP_NUM_THREADS": "5"}, threads=7)["threads"].value == "7"
    assert chosen({})["threads"].value == str(runtime.available_cores())


def test_cores_are_those_this_process_may_use():
    code = "from llmctl import runtime; print(runtime.available_cores())"
    one = f"import os; os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}}); {code}"
    assert subprocess.check_output([sys.executable, "-c", one], text=True).strip() == "1"


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_numpys_products_use_the_threads_of_the_process():
    count = "import os, numpy as np; np.ones((9, 9)) @ np.ones((9, 9)); print(len(os.listdir('/proc/self/task')))"
    code = f"from llmctl.runtime import process; process.limit_numpy(); {count}"
    environ = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    found = subprocess.check_output([sys.executable, "-c", code], text=True, env={**environ, "LLMCTL_THREADS": "1"})
    assert found.strip() == "1"


@pytest.mark.skipif(runtime.plan({})[2].value != "keep", reason="the C library is not glibc")
def test_freed_memory_is_used_again_unless_it_is_switched_off():
    code = """
import resource
import numpy as np
from llmctl.runtime import process

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

process.keep_memory()
faults()
print(faults())
"""
    environ = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}
    kept, returned = (
        int(subprocess.check_output([sys.executable, "-c", code], text=True, env={**environ, "LLMCTL_MALLOC": choice}))
        for choice in ("auto", "off")
    )
    assert kept < returned / 4


@pytest.mark.parametrize(("vendor", "flags", "value"), [
    ("AuthenticAMD", "sse avx2", "5"), ("AuthenticAMD", "sse", "off"), ("GenuineIntel", "avx2", "off"), ("", "", "off"),
])  # fmt: skip
def test_the_matrix_switch_is_for_amd_with_avx2_only(monkeypatch, vendor, flags, value):
    monkeypatch.setattr(runtime, "_cpuinfo", lambda: {"vendor_id": vendor, "flags": flags})
    assert chosen({})["mkl kernels"].value == value
    assert chosen({"LLMCTL_MKL": "off"})["mkl kernels"].value == "off"
    assert chosen({"MKL_DEBUG_CPU_TYPE": "7"})["mkl kernels"].value == "7"


@pytest.mark.parametrize(
    "environ",
    [{"LLMCTL_THREADS": "0"}, {"LLMCTL_THREADS": "many"}, {"LLMCTL_THREADS": "\N{SUPERSCRIPT TWO}"}, {"LLMCTL_MKL": "fast"}, {"LLMCTL_MALLOC": "yes"},
     {"LLMCTL_VIEWS": "1"}, {"LLMCTL_DETERMINISTIC": "1"}],
)  # fmt: skip
def test_values_that_are_not_allowed_are_refused(environ):
    (name,) = environ
    with pytest.raises(ConfigError, match=name):
        runtime.plan(environ)


def test_every_setting_says_how_to_override_it():
    for name, value, source, override in runtime.describe():
        assert name and value and source and override.startswith("LLMCTL_")


def test_settings_reach_paddle_and_its_advice_is_not_shown():
    code = (
        "from llmctl import runtime\n"
        "paddle = runtime.import_paddle('a test')\n"
        "import json, os\n"
        "flags = paddle.get_flags(['FLAGS_use_stride_kernel'])\n"
        "print(json.dumps([os.environ['OMP_NUM_THREADS'], flags['FLAGS_use_stride_kernel']]))"
    )
    environ = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "LLMCTL_THREADS")}
    environ |= {"LLMCTL_THREADS": "1", "LLMCTL_VIEWS": "off"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=True)
    assert json.loads(done.stdout) == ["1", False] and done.stderr == ""


def test_environment_command_shows_all_of_it(run_llmctl):
    shown = json.loads(run_llmctl("env", "--json", env={"LLMCTL_THREADS": "2"}).stdout)
    settings = {row["setting"]: row for row in shown["runtime"]}
    assert settings["threads"] == {
        "setting": "threads", "value": "2", "source": "LLMCTL_THREADS", "override": "LLMCTL_THREADS=<number>",
    }  # fmt: skip
    assert set(settings) == {row[0] for row in runtime.describe()} and shown["versions"]["numpy"]


def test_every_choice_of_operators_is_known_before_they_are_loaded():
    from llmctl_ops import library

    assert sorted(runtime.OPERATORS) == sorted(library.CHOICES)
