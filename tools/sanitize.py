"""Runs the operators' tests with kernels built by AddressSanitizer and UndefinedBehaviorSanitizer: ``make sanitize``.

The library is built into a copy of the package in ops/build, and kept until a source changes. An access outside of an array, or
undefined arithmetic, ends the tests.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OPS = ROOT / "ops"
CHECKS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
TESTS = ("ops/tests", "tests/unit/infer/executors/test_native.py", "tests/unit/infer/packed/test_packed_folder.py")
OPTIONS = {
    # Python and paddle keep memory until the process ends, and paddle's own libraries are not checked.
    # A test asks for more memory than there is, and gets none.
    "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0:detect_odr_violation=0:abort_on_error=1:handle_segv=0"
    ":allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
}


def main() -> int:
    """Builds, and runs pytest; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tests", nargs="*", default=TESTS, help="what pytest runs")
    given, more = parser.parse_known_args()
    package = OPS / "build" / "sanitize" / "llmctl_ops"
    left_out = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(OPS / "llmctl_ops", package, ignore=left_out, dirs_exist_ok=True)
    library = package / "libllmctl_ops.so"
    sources = (*OPS.glob("csrc/cpu/*"), Path(__file__))
    if not library.exists() or library.stat().st_mtime < max(file.stat().st_mtime for file in sources):
        build(library, CHECKS)
    # Python is no C++ program: without its library the sanitizer finds no function that throws, and ends where paddle throws.
    runtimes = [_path_of("libasan.so"), _path_of("libstdc++.so.6")]
    # The sanitizer opens libraries in paddle's place, and knows none of its folders.
    home = Path(next(iter(importlib.util.find_spec("paddle").submodule_search_locations)))
    paths = [str(package.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    settings = {
        "LD_PRELOAD": " ".join(runtimes),
        "LD_LIBRARY_PATH": str(home / "libs"),
        "PYTHONPATH": os.pathsep.join(paths),
        **OPTIONS,
    }
    # nvcc does not run with the sanitizers loaded into it.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not cuda", *given.tests, *more]
    for report in package.parent.glob("report.*"):
        report.unlink()
    # pytest captures what the sanitizers say where they end the process.
    settings |= {name: f"{settings[name]}:log_path={package.parent / 'report'}" for name in OPTIONS}
    code = subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, check=False).returncode
    for report in package.parent.glob("report.*"):
        print(report.read_text(encoding="utf-8", errors="replace"))
    return code


def build(library: Path, checks: tuple[str, ...]) -> None:
    """Compiles the kernels with the flags of setup.py, less optimized and with checks."""
    flags, units = _settings()
    common = [
        *(flag for flag in flags if flag not in ("-O3", "-g0")),
        "-O1",
        "-g",
        "-fno-omit-frame-pointer",
        "-fPIC",
        *checks,
    ]

    def compile_unit(unit: str) -> str:
        target = str(library.with_name(Path(unit).stem + ".o"))
        subprocess.run(["g++", *common, "-c", unit, "-o", target], cwd=OPS, check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_unit, units))
    subprocess.run(["g++", "-shared", *checks, *objects, "-o", str(library)], check=True)


def _path_of(library: str) -> str:
    command = ["g++", f"-print-file-name={library}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _settings() -> tuple[list[str], list[str]]:
    """FLAGS and UNITS of setup.py."""
    source = (OPS / "setup.py").read_text(encoding="utf-8").partition("KERNELS = Extension")[0]
    found = [line for line in source.splitlines() if not line.startswith(("from setuptools", "import setuptools"))]
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write("\n".join(found))
        file.flush()
        values = runpy.run_path(file.name)
    return values["FLAGS"], values["UNITS"]


if __name__ == "__main__":
    sys.exit(main())
