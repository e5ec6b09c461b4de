"""Writes constraints/pyXYZ.txt: the exact versions that pip resolves for the extras cpu, dev and browser on each Python.

Run with: python tools/make_constraints.py [PYTHON...]; by default the commands python3.10 to python3.13.
Nothing is installed: pip only reports what it would install.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("python3.10", "python3.11", "python3.12", "python3.13")


def resolve(python: str) -> list[str]:
    """Lines ``name==version`` of everything that the extras bring, llmctl itself left out."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        report = Path(folder) / "report.json"
        pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        command = [*pip, "--dry-run", "--ignore-installed", "--report", str(report), f"{ROOT}[cpu,browser]"]
        subprocess.run(command, check=True)
        found = [row["metadata"] for row in json.loads(report.read_text(encoding="utf-8"))["install"]]
    names = {row["name"].lower(): f"{row['name']}=={row['version']}" for row in found}
    return [line for name, line in sorted(names.items()) if name != "paddle-llmctl"]


def main() -> None:
    """Writes a file for each Python named on the command line, or for all."""
    for python in sys.argv[1:] or PYTHONS:
        code = "import sys; print('py%d%d' % sys.version_info[:2])"
        name = subprocess.run([python, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        lines = [f"# Written by tools/make_constraints.py for {name}.", *resolve(python)]
        (ROOT / "constraints" / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"constraints/{name}.txt: {len(lines) - 1} versions")


if __name__ == "__main__":
    main()
