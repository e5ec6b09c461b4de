"""Builds the library of kernels; needs only a C++ compiler.

The library is loaded with ctypes, so that it does not depend on the version of Python or paddle, and one wheel serves all. If
the build fails the distribution installs without it and its operators take their reference path; LLMCTL_OPS_BUILD=require makes
a failed build an error. LLMCTL_OPS_CUDA=1 also builds the CUDA kernels, which needs nvcc.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-Wno-psabi",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-exceptions",
    "-fno-rtti",
]
UNITS = [f"csrc/cpu/{name}.cpp" for name in ("avx2", "avx512", "avx512vnni", "portable", "library")]
KERNELS = Extension(
    "llmctl_ops.libllmctl_ops",
    UNITS,
    depends=sorted(str(path) for path in Path("csrc").glob("**/*.h")),
    language="c++",
    extra_compile_args=FLAGS,
    # Resolve symbols at load, where a failure can be caught, rather than at a call.
    extra_link_args=["-Wl,-z,now", "-s"],
)


class BuildKernels(build_ext):
    """Names the library without a Python version; a failed build leaves no library, or is an error if one is required."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def get_export_symbols(self, ext):
        return ext.export_symbols

    def run(self):
        try:
            super().run()
        except Exception as error:
            if os.environ.get("LLMCTL_OPS_BUILD") == "require":
                raise
            print(f"paddle-llmctl-ops: no kernels, the reference path is used: {error}", file=sys.stderr)
            # A library of an earlier build would not match the sources.
            Path("llmctl_ops", "libllmctl_ops.so").unlink(missing_ok=True)
            self.extensions = []
        if os.environ.get("LLMCTL_OPS_CUDA") == "1":
            sys.path.insert(0, str(Path(__file__).parent))
            from cuda_build import build

            library = Path(self.get_ext_fullpath("llmctl_ops.libllmctl_ops")).with_name("libllmctl_ops_cuda.so")
            build(Path("csrc/cuda"), library)


class AnyPython(bdist_wheel):
    """Tags the wheel for every Python 3 of this platform."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(ext_modules=[KERNELS], cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPython})
