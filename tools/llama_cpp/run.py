"""Runs llama.cpp's own HTTP tests that ask for what OpenAI's and Anthropic's APIs mean against ``llmctl serve``.

    python tools/llama_cpp/run.py TESTS --model MODEL [-k NAMES]

TESTS is the folder tools/server/tests of a copy of llama.cpp (its source is in `pip download --no-binary :all: llama-cpp-python`),
MODEL one of stories260K in the layout of Hugging Face. asked.yaml lists the tests and why the others are left out. An environment
with their packages is made in build/llama_cpp.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE.parents[1] / "build" / "llama_cpp"
PACKAGES = (
    "aiohttp", "filelock", "numpy", "openai>=3,<4", "prometheus-client", "pytest>=8", "pyyaml", "requests", "wget",
)  # fmt: skip


def main() -> int:
    """The exit code of the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("-k", dest="names", default="", help="only these tests, as for pytest")
    given = parser.parse_args()
    if not (given.tests / "utils.py").exists() or not (given.tests / "unit").is_dir():
        parser.error(f"{given.tests} has no utils.py and unit; give the folder tools/server/tests of llama.cpp")
    if not (given.model / "config.json").exists():
        parser.error(f"{given.model} has no config.json; give a model folder")
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "installed").exists():
        venv.create(ENVIRONMENT, with_pip=False, clear=True)
        subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *PACKAGES], check=True)
        (ENVIRONMENT / "installed").touch()
    settings = {
        "LLMCTL_MODEL": str(given.model.resolve()), "LLMCTL_COMMAND": json.dumps([sys.executable, "-m", "llmctl"]),
        "PYTHONPATH": os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(HERE)]), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    words = ["-p", "shim", "-p", "no:cacheprovider", "-q", "--tb=short", "-k", given.names, "unit"]
    return subprocess.run(
        [python, "-m", "pytest", *words], cwd=given.tests, env={**os.environ, **settings}, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
